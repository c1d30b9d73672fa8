"""Evaluators: workers beside training that measure its checkpoints, on this machine or others."""

from trainer.evaluators.checkpoint_ranking import Best, best_commit
from trainer.evaluators.evaluator import WorkSummary, work
from trainer.evaluators.liveness import WorkerRow, workers
from trainer.evaluators.suite import Suite
from trainer.evaluators.suite_loading import load_suites

__all__ = [
    "Best",
    "Suite",
    "WorkSummary",
    "WorkerRow",
    "best_commit",
    "load_suites",
    "work",
    "workers",
]
