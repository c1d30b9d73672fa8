"""Evaluators: workers beside training that measure its checkpoints, on this machine or others."""

from trainer.evaluators.best import Best, best_commit
from trainer.evaluators.loading import load_suites
from trainer.evaluators.signs import WorkerRow, workers
from trainer.evaluators.suite import Suite
from trainer.evaluators.worker import Worked, work

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
