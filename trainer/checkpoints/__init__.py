"""Checkpoints of the whole state: written in the background, restored only if intact."""

from trainer.checkpoints.arrays.damage import DamagedCheckpoint
from trainer.checkpoints.load import restore
from trainer.checkpoints.manager import Checkpoints
from trainer.checkpoints.restore_one import SavedCheckpoint
from trainer.checkpoints.save_worker import wait_for_saves
from trainer.checkpoints.storage.bucket_path import BucketError

__all__ = [
    "BucketError",
    "Checkpoints",
    "DamagedCheckpoint",
    "SavedCheckpoint",
    "restore",
    "wait_for_saves",
]
