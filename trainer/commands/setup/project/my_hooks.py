"""Hooks of this project: functions of a state and metrics that return a state."""

from collections.abc import Mapping

import hooks
from trainer import TrainState


@hooks.observe
@hooks.reads("train/accuracy", "val/accuracy")
@hooks.writes("gap/accuracy")
def measure_gap(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
    """Write by how much the accuracy on training data exceeds that on held-out data."""
    gap = metrics["train/accuracy"] - metrics["val/accuracy"]
    return state.replace(scores={**state.scores, "gap/accuracy": gap})
