"""Programs: what a phase is compiled to."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax

from trainer.executors import Choice
from trainer.metrics import Layout
from trainer.state import PyTree, TrainState


class Program(NamedTuple):
    """A phase compiled for one structure of state and data."""

    run: Callable[..., tuple[TrainState, PyTree, jax.Array]]
    """`(device part, data, advance) -> (device part, output, packed metrics)`; `advance` is told of
    steps as they are dispatched, where it is given."""
    layout: Layout
    stepwise: bool
    choice: Choice
    steps: int | None = None
    """Of a piece of data, where what it measures is packed step by step."""
