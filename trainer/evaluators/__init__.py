"""Evaluators: workers beside training that evaluate its checkpoints, on this machine or others."""

from trainer.evaluators.checkpoint_ranking import BestCheckpoint, best_checkpoint
from trainer.evaluators.evaluator import WorkerSettings, WorkSummary, work
from trainer.evaluators.liveness import WorkerRow, list_workers
from trainer.evaluators.suite import Suite
from trainer.evaluators.suite_loading import load_suites

__all__ = [
    "BestCheckpoint",
    "Suite",
    "WorkSummary",
    "WorkerRow",
    "WorkerSettings",
    "best_checkpoint",
    "list_workers",
    "load_suites",
    "work",
]
