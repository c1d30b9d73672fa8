"""Compiled phases: traced and compiled without references to the phase or its data."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from trainer.checks.arguments import describe_value
from trainer.host.time_spans import StepCounter
from trainer.phases.buffers.passed_leaves import LeafSplit, find_passed_leaves, lower_split
from trainer.phases.buffers.state_buffers import check_structure
from trainer.phases.compilation import is_debug_mode, jit_inspected, read_jax_settings
from trainer.phases.dispatches import choose_dispatch_count, lower_dispatches
from trainer.phases.executors import (
    ExecutorChoice,
    ScannedStep,
    choose_executor,
    lower_steps,
)
from trainer.phases.in_place_changes import MutationGuard
from trainer.phases.jaxprs import count_flops
from trainer.phases.packed import PackedLayout, get_shapes, pack
from trainer.phases.reductions import check_metrics, to_arrays
from trainer.placement.constraints import (
    choose_output_shardings,
    constrain_changes,
    constrain_state,
)
from trainer.state import LIVE, PyTree, TrainState

PhaseFunction = Callable[[TrainState, Any], tuple[TrainState, PyTree, dict[str, Any]]]
"""`(state, data) -> (state, output, metrics)`, jittable."""


@dataclasses.dataclass(frozen=True)
class Computation:
    """What a phase computes, without its data: it may be shared, and outlive the phase."""

    name: str
    """Of the phase, for messages."""
    run: PhaseFunction | ScannedStep
    reduce: Mapping[str, str]
    """How the trace of a metric becomes the epoch's value."""
    updates_state: bool
    population: bool
    """Whether it is of a population, whose metrics have an axis of members."""
    several: bool = False
    """Whether it is several passes, whose metrics are checked within."""


def trace(
    computation: Computation, state: TrainState, data: Any, *, donate: bool
) -> tuple[Any, PyTree]:
    """Trace a computation; the metrics of a repeated step are packed per step.

    Returns:
        The traced function, and the shapes of (metrics, steps taken); for a population also of
        which members are live.
    """
    measured: list[PyTree] = []

    def whole(state: TrainState, data: Any) -> tuple[PyTree, PyTree, jax.Array]:
        if isinstance(computation.run, ScannedStep):
            after, packed, (one, taken) = computation.run.packed(state, data)
            steps = len(packed)
            metrics = jax.tree.map(lambda x: jax.ShapeDtypeStruct((steps, *x.shape), x.dtype), one)
            output, numbers = None, (metrics, taken)
        else:
            after, output, numbers = _run_measured(computation, state, data)
            packed = pack(numbers)
        if not (computation.population or computation.several):
            check_metrics(numbers[0], computation.reduce, computation.name)
        measured.append(get_shapes(numbers))
        return after if computation.updates_state else None, output, packed

    with jax.disable_jit(False):
        options = choose_output_shardings(updates_state=computation.updates_state)
        traced = jax.jit(whole, donate_argnums=(0,) if donate else (), **options).trace(state, data)
    return traced, measured[0]


def split_state(computation: Computation, traced: Any, state: TrainState) -> LeafSplit:
    """Split a state by what its computation, once traced, passes through."""
    if computation.updates_state:
        return find_passed_leaves(traced.jaxpr, state)
    leaves, structure = jax.tree.flatten(state)
    return LeafSplit(structure, (True,) * len(leaves))


def _run_measured(
    computation: Computation, state: TrainState, data: Any
) -> tuple[TrainState, PyTree, tuple[Any, ...]]:
    """Run; return with the metrics the steps taken and, for a population, the live members."""
    within = constrain_state(state)
    after, output, metrics = run_checked(computation.run, computation.name, within, data)
    live = (state.carry[LIVE],) if computation.population else ()
    numbers = metrics, after.step - state.step, *live
    return constrain_changes(state, within, after), output, numbers


def run_checked(
    run: PhaseFunction, name: str, state: TrainState, data: Any
) -> tuple[TrainState, PyTree, dict[str, Any]]:
    """Run, while tracing, and check that the result is a state of the same structure.

    Raises:
        TypeError, ValueError: it is not, or the state was changed in place.
    """
    guard = MutationGuard(state)
    result = run(state, data)
    guard.check_unchanged(f"phase {name!r}")
    if not isinstance(result, tuple) or len(result) != 3:
        raise TypeError(
            f"phase {name!r} must return (state, output, metrics); got {describe_value(result)}"
        )
    after, output, metrics = result
    metrics = to_arrays(metrics, name)
    return check_structure(state, after, f"phase {name!r}"), output, metrics


def compute_signature(tree: PyTree, *, placed: bool = False) -> Any:
    """Return a key of a tree's structure, shapes and dtypes, and optionally of its placement."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple(
        (leaf.shape, leaf.dtype, getattr(leaf, "sharding", None) if placed else None)
        for leaf in leaves
    )


def make_compilation_key(state: PyTree, data: PyTree, donate: bool) -> tuple[Any, ...]:
    """Return what a function is traced and compiled for; lowered, it keeps the placement."""
    shapes = compute_signature(state, placed=True), compute_signature(data)
    return *shapes, donate, read_jax_settings()


Packed = jax.Array | list[jax.Array]
"""Packed measurements of a compiled phase; one array per dispatch where there are several."""

PhaseRunner = Callable[..., tuple[TrainState, PyTree, Packed]]
"""`(device part, data, advance) -> (device part, output, packed)`; `advance` counts the steps as
they are dispatched, if given."""


class PhaseShapes(NamedTuple):
    """The shapes of what a phase returns, and which leaves of the state it passes through."""

    output: PyTree
    metrics: dict[str, Any]
    passed: tuple[bool, ...]
    """Of each leaf of the device part, whether the very array is passed on."""


class CompiledPhase(NamedTuple):
    """A phase compiled for one structure of state and data."""

    run: PhaseRunner
    layout: PackedLayout
    stepwise: bool
    choice: ExecutorChoice
    signature: Any
    """Of the data, from `compute_signature`."""
    steps: int | None = None
    """Steps per piece of data, if measurements are packed per step."""
    in_turn: str | None = None
    """Why it must not be sent to the device before its turn, if so."""
    passed: tuple[bool, ...] = ()
    """Of each leaf of the device part, whether it is passed through."""


def lower_phase(
    computation: Computation,
    trace: tuple[Any, PyTree],
    executor: str | None,
    state: TrainState,
    data: Any,
    *,
    donate: bool,
) -> Callable[[], CompiledPhase]:
    """Lower the computation of a phase, traced by `trace`, with the executor that suits it.

    The executor of a hand-written phase is None.

    Returns:
        A function that compiles it, on any thread.
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
    if computation.several and choice.executor == "step" and not is_debug_mode():
        raise ValueError(
            f"phase {computation.name!r} repeats a convolution in one program, where "
            f"{choice.reason}: list its phases themselves in the program"
        )
    steps, count = None, 1
    if scanned is not None:
        metrics, taken = measured
        steps = next((x.shape[0] for x in jax.tree.leaves(metrics)), None)
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), metrics)
        measured = one, taken
        if steps is not None:
            count = choose_dispatch_count(steps, count_flops(traced.jaxpr), devices)
    lowered: Callable[[], PhaseRunner]
    split = split_state(computation, traced, state)
    if scanned is not None and choice.executor == "step":
        lowered = lower_steps(scanned, state, data, measured, split, donate=donate)
    elif scanned is not None and count > 1:
        many = f", in {count} dispatches of {(steps or 0) // count} steps"
        choice = choice._replace(reason=choice.reason + many)
        lowered = lower_dispatches(scanned, state, data, count, split, donate=donate)
    else:
        lower = traced.lower
        if computation.updates_state and any(split.passed):
            lower = functools.partial(lower_split, traced, split, state, data, donate=donate)
        lowered = _lower_whole(computation, lower, steps)
    layout = PackedLayout.from_shapes(measured)
    signature, in_turn = compute_signature(data), _find_reason_to_wait(traced, choice)

    def finish() -> CompiledPhase:
        stepwise = scanned is not None
        about = choice, signature, steps, in_turn, split.passed
        return CompiledPhase(lowered(), layout, stepwise, *about)

    return finish


def _find_reason_to_wait(traced: Any, choice: ExecutorChoice) -> str | None:
    """Return why a phase must not run before its turn, if so."""
    if traced.jaxpr.effects:
        return "it has effects, such as those of jax.debug.print, which cannot be undone"
    if choice.executor == "step":
        return "its single steps fill the device's queue, and so wait for it"
    return None


def _lower_whole(
    computation: Computation, lower: Callable[[], Any], steps: int | None
) -> Callable[[], PhaseRunner]:
    """Lower a computation for one dispatch by `lower`, or jit it for JAX's debug modes.

    These inspect calls, and numbers before packing.
    """

    def inspected(state: TrainState, data: Any) -> tuple[PyTree, PyTree, jax.Array, PyTree]:
        after, output, numbers = _run_measured(computation, state, data)
        return after if computation.updates_state else None, output, pack(numbers), numbers

    lowered = None if is_debug_mode() else lower()
    changes = computation.updates_state

    def finish() -> PhaseRunner:
        compiled = lowered.compile() if lowered else jit_inspected(inspected)

        def run(
            state: TrainState, data: Any, advance: StepCounter | None = None
        ) -> tuple[TrainState, PyTree, jax.Array]:
            after, output, packed, *_ = compiled(state, data)
            if advance is not None and steps is not None:
                advance.add(steps, packed)
            return after if changes else state, output, packed

        return run

    return finish


def fetch_packed(packed: Packed) -> np.ndarray:
    """Fetch measurements; those of several dispatches are joined to one array."""
    if isinstance(packed, list):
        return np.concatenate([np.asarray(part) for part in packed])
    return np.asarray(packed)
