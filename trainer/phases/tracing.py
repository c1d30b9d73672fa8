"""Tracing of a phase's function, without references to the phase or its data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from trainer.checks.arguments import describe_value
from trainer.phases.executors import ScannedStep
from trainer.phases.in_place_changes import MutationGuard
from trainer.phases.metrics import LIVE
from trainer.phases.packed import get_shapes, pack
from trainer.phases.reductions import check_metrics, to_arrays
from trainer.phases.state_buffers import check_structure
from trainer.state import PyTree, TrainState

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


def trace(
    computation: Computation, state: TrainState, data: Any, *, donate: bool
) -> tuple[Any, PyTree]:
    """Trace a computation; the metrics of a repeated step are packed per step.

    Args:
        computation: of a phase.
        state: the device part, to trace for.
        data: to trace for.
        donate: whether the state's buffers may be reused.

    Returns:
        The traced function, and the shapes of (metrics, steps taken); for a population also of
        which members are live.
    """
    measured: list[PyTree] = []

    def whole(state: TrainState, data: Any) -> tuple[PyTree, PyTree, jax.Array]:
        if isinstance(computation.run, ScannedStep):
            after, packed, (one, taken) = computation.run.packed(state, data)
            output, numbers = None, (_stack_shapes(one, len(packed)), taken)
        else:
            after, output, numbers = _run_measured(computation, state, data)
            packed = pack(numbers)
        if not computation.population:
            check_metrics(numbers[0], computation.reduce, computation.name)
        measured.append(get_shapes(numbers))
        return after if computation.updates_state else None, output, packed

    with jax.disable_jit(False):
        traced = jax.jit(whole, donate_argnums=(0,) if donate else ()).trace(state, data)
    return traced, measured[0]


def jit_for_debugging(computation: Computation) -> Callable[..., Any]:
    """Jit a computation for JAX's debug modes, which inspect calls and numbers before packing."""

    def whole(state: TrainState, data: Any) -> tuple[PyTree, PyTree, jax.Array, PyTree]:
        after, output, numbers = _run_measured(computation, state, data)
        return after if computation.updates_state else None, output, pack(numbers), numbers

    return jax.jit(whole)


def _run_measured(
    computation: Computation, state: TrainState, data: Any
) -> tuple[TrainState, PyTree, tuple[Any, ...]]:
    """Run; return with the metrics the steps taken and, for a population, the live members."""
    after, output, metrics = run_checked(computation.run, computation.name, state, data)
    live = (state.carry[LIVE],) if computation.population else ()
    return after, output, (metrics, after.step - state.step, *live)


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


def _stack_shapes(shapes: PyTree, steps: int) -> PyTree:
    """Return the shapes of the metrics of several steps."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((steps, *x.shape), x.dtype), shapes)
