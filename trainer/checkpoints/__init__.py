"""Checkpoints: commits of the whole state, written in the background, restored only if intact."""

from trainer.checkpoints.manifest import DamagedCommit
from trainer.checkpoints.reading import restore
from trainer.checkpoints.restoring import Commit
from trainer.checkpoints.run import Checkpoints
from trainer.checkpoints.worker import wait_for_saves

__all__ = ["Checkpoints", "Commit", "DamagedCommit", "restore", "wait_for_saves"]
