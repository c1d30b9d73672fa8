"""Runs on record: a store that many processes write and read, and a run's own way into it."""

from trainer.runs.connections import Unreachable
from trainer.runs.rows import Artifact, CheckpointRow, Record, Request, RunRow
from trainer.runs.run import Run, deliver_queue
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
