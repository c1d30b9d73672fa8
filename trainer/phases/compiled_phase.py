"""Compiled phases: what runs on the device, and how its measurements are read."""

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
"""Packed measurements of a compiled phase; one array per dispatch where there are several."""

PhaseRunner = Callable[..., tuple[TrainState, PyTree, Packed]]
"""`(device part, data, advance) -> (device part, output, packed)`; `advance` counts the steps as
they are dispatched, if given."""


class CompiledPhase(NamedTuple):
    """A phase compiled for one structure of state and data."""

    run: PhaseRunner
    layout: PackedLayout
    stepwise: bool
    choice: ExecutorChoice
    steps: int | None = None
    """Steps per piece of data, if measurements are packed per step."""


def wrap_single_dispatch(
    compiled: Callable[..., Any], *, changes: bool, steps: int | None
) -> PhaseRunner:
    """Return a runner for a compiled function that takes one dispatch.

    Args:
        compiled: `(state, data) -> (state, output, packed, ...)`.
        changes: whether it returns a new state; if not, the runner returns the state it received.
        steps: per piece of data, if known.
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
    """Fetch measurements; those of several dispatches are joined to one array."""
    if isinstance(packed, list):
        return np.concatenate([np.asarray(part) for part in packed])
    return np.asarray(packed)
