"""Recorded runs: a store that many processes write and read, and a run's own access to it."""

from trainer.runs.delivery import deliver_queue
from trainer.runs.rows import Artifact, CheckpointRow, Record, Request, RunRow
from trainer.runs.run import Run
from trainer.runs.sql.connection import Unreachable
from trainer.runs.store import Store

__all__ = [
    "Artifact",
    "CheckpointRow",
    "Record",
    "Request",
    "Run",
    "RunRow",
    "Store",
    "Unreachable",
    "deliver_queue",
]
