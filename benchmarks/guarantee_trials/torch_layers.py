"""The network of `guarantees` in torch, for the trainers that train torch modules."""

from torch import nn

from guarantee_trials.trial import DROPOUT, HIDDEN


def build_layers():
    """Build an MLP with dropout, from 64 pixels to 10 logits."""
    return nn.Sequential(
        nn.Linear(64, HIDDEN),
        nn.ReLU(),
        nn.Dropout(DROPOUT),
        nn.Linear(HIDDEN, HIDDEN),
        nn.ReLU(),
        nn.Dropout(DROPOUT),
        nn.Linear(HIDDEN, 10),
    )
