"""Programs: what a phase is compiled to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from trainer.host.time_spans import StepCounter
from trainer.phases.executors import ExecutorChoice
from trainer.phases.packed import PackedLayout
from trainer.state import PyTree, TrainState

Packed = jax.Array | list[jax.Array]
"""What a program measured, packed; of each dispatch where there are several."""

PhaseRunner = Callable[..., tuple[TrainState, PyTree, Packed]]
"""`(device part, data, advance) -> (device part, output, packed)`; `advance` is told of steps as
they are dispatched, where it is given."""


class CompiledPhase(NamedTuple):
    """A phase compiled for one structure of state and data."""

    run: PhaseRunner
    layout: PackedLayout
    stepwise: bool
    choice: ExecutorChoice
    steps: int | None = None
    """Of a piece of data, where what it measures is packed step by step."""


def wrap_single_dispatch(
    compiled: Callable[..., Any], *, changes: bool, steps: int | None
) -> PhaseRunner:
    """Run a program of one dispatch.

    Args:
        compiled: `(state, data) -> (state, output, packed, ...)`.
        changes: whether it gives a state; else the one that it was given is passed by.
        steps: of a piece of data, where they are known.
    """

    def run(
        state: TrainState, data: Any, advance: StepCounter | None = None
    ) -> tuple[TrainState, PyTree, jax.Array]:
        after, output, packed, *_ = compiled(state, data)
        if advance is not None and steps is not None:
            advance.add(steps, packed)
        return after if changes else state, output, packed

    return run


def fetch_packed(packed: Packed) -> np.ndarray:
    """Fetch what was measured: of several dispatches joined, as one would have given it."""
    if isinstance(packed, list):
        return np.concatenate([np.asarray(part) for part in packed])
    return np.asarray(packed)
