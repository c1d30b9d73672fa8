"""Compiled phases: what runs on the device, and how its measurements are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from trainer.host.time_spans import StepCounter
from trainer.phases.compilation import is_debug_mode
from trainer.phases.executors import ExecutorChoice, ScannedStep, choose_executor, compile_steps
from trainer.phases.jaxprs import count_flops
from trainer.phases.packed import PackedLayout
from trainer.phases.scan_pieces import choose_dispatch_count, compile_dispatches
from trainer.phases.tracing import Computation, jit_for_debugging
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


def compile_phase(
    computation: Computation,
    trace: tuple[Any, PyTree],
    executor: str | None,
    state: TrainState,
    data: Any,
    *,
    donate: bool,
) -> CompiledPhase:
    """Compile the computation of a phase with the executor that suits it.

    Args:
        computation: of the phase.
        trace: of the computation, as `trainer.phases.tracing.trace` returns it.
        executor: of the phase; None for a hand-written one.
        state: the device part, to compile for.
        data: to compile for.
        donate: whether the state's buffers may be reused.
    """
    traced, measured = trace
    devices = state.step.devices()
    scanned = computation.run if isinstance(computation.run, ScannedStep) else None
    if executor is None:
        choice = ExecutorChoice("scan", "the phase is one function")
    elif scanned is not None and is_debug_mode():
        choice = ExecutorChoice("step", "a debug mode of JAX inspects each call")
    else:
        choice = choose_executor(executor, traced.jaxpr, next(iter(devices)).platform)
    steps, count = None, 1
    if scanned is not None:
        metrics, taken = measured
        steps = next((x.shape[0] for x in jax.tree.leaves(metrics)), None)
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), metrics)
        measured = one, taken
        if steps is not None:
            count = choose_dispatch_count(steps, count_flops(traced.jaxpr), devices)
    run: PhaseRunner
    if scanned is not None and choice.executor == "step":
        run = compile_steps(scanned, state, data, measured, donate=donate)
    elif scanned is not None and count > 1:
        choice = choice.cut(count, (steps or 0) // count)
        run = compile_dispatches(scanned, state, data, count, donate=donate)
    else:
        debug = is_debug_mode()
        compiled = jit_for_debugging(computation) if debug else traced.lower().compile()
        run = _wrap_single_dispatch(compiled, changes=computation.updates_state, steps=steps)
    layout = PackedLayout.from_shapes(measured)
    return CompiledPhase(run, layout, scanned is not None, choice, steps)


def _wrap_single_dispatch(
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
