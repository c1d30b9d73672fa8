"""Training as jitted pure functions over an immutable state, with hooks between epochs."""

from trainer import data, losses, optimizers
from trainer.caching import cache_compilations
from trainer.checkpoints import Checkpoints
from trainer.hook import Hook, Interrupt
from trainer.loop import fit
from trainer.metrics import Metrics
from trainer.phases import Phase
from trainer.repeating import evaluation, training
from trainer.state import TrainState, fingerprint
from trainer.supervised import supervised

__all__ = [
    "Checkpoints",
    "Hook",
    "Interrupt",
    "Metrics",
    "Phase",
    "TrainState",
    "cache_compilations",
    "data",
    "evaluation",
    "fingerprint",
    "fit",
    "losses",
    "optimizers",
    "supervised",
    "training",
]
