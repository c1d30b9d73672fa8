"""What all trainers of `guarantees` are given: data, sizes, and how a process is killed."""

import os
import signal
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

BATCH, BATCHES, HIDDEN, DROPOUT, RATE = 64, 22, 64, 0.2, 1e-3
HALF_EPOCH = BATCHES // 2
"""Steps between two checkpoints of a trainer that saves within an epoch."""

SCRIPTED = (1.0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3)
"""The validation loss after each epoch, so that early stopping has one right answer."""
PATIENCE = 3
DECIDED = 7.0
"""What a callback sets the last bias to, for a logger and a checkpoint to see."""


class Steps:
    """Count steps; a process dies after one of them.

    Args:
        fatal: the step, counted from 1 in this process.
        pause: seconds to wait before, so that a save in the background ends.
    """

    def __init__(self, fatal=None, pause=0.0):
        self.fatal, self.pause, self.count = fatal, pause, 0

    def __call__(self):
        self.count += 1
        if self.count == self.fatal:
            time.sleep(self.pause)
            os.kill(os.getpid(), signal.SIGKILL)


class Trial(NamedTuple):
    """One process that trains."""

    folder: Path
    """For checkpoints."""
    steps: Steps
    """To be called after each step."""
    epochs: int
    watched: str | None = None
    """The metric of early stopping: `loss`, which is `SCRIPTED`, or one that does not exist."""
    every: str = "epoch"
    """Save at the end of each epoch, or after each half, `half`, where the trainer can."""


def load_digits():
    """Load 22 batches of digits: inputs float32 `[1408, 64]`, labels int32 `[1408]`."""
    from sklearn import datasets

    images, labels = datasets.load_digits(return_X_y=True)
    places = np.random.default_rng(0).permutation(len(labels))[: BATCH * BATCHES]
    return (images[places] / 16).astype(np.float32), labels[places].astype(np.int32)
