"""Evaluators: workers beside training that measure its checkpoints, on this machine or others."""

from trainer.evaluators.best_checkpoint import Best, best_commit
from trainer.evaluators.evaluator import Worked, work
from trainer.evaluators.liveness import WorkerRow, workers
from trainer.evaluators.suite import Suite
from trainer.evaluators.suite_loading import load_suites

__all__ = [
    "Best",
    "Suite",
    "Worked",
    "WorkerRow",
    "best_commit",
    "load_suites",
    "work",
    "workers",
]
