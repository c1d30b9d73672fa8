"""Tracing a computation once: what a phase runs, by functions that know of no phase and no data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from trainer.checks.arguments import describe_value
from trainer.phases.executors import ScannedStep
from trainer.phases.in_place_changes import MutationGuard
from trainer.phases.metrics import check_metrics, to_arrays
from trainer.phases.packed import pack
from trainer.phases.population_metrics import LIVE
from trainer.phases.state_buffers import check_structure
from trainer.state import PyTree, TrainState

PhaseFunction = Callable[[TrainState, Any], tuple[TrainState, PyTree, dict[str, Any]]]
"""`(state, data) -> (state, output, metrics)`, jittable."""


def trace(
    run: PhaseFunction | ScannedStep,
    name: str,
    reduce: Mapping[str, str],
    state: TrainState,
    data: Any,
    *,
    changes: bool,
    alone: bool,
    donate: bool,
) -> tuple[Any, PyTree]:
    """Trace a computation. What comes of it may be shared, and outlive the phase and its data.

    Args:
        run: what to trace; of a repeated step the metrics are packed step by step.
        name: of the phase, for messages.
        reduce: how a metric's trace becomes the epoch's value.
        state: the device part, to trace for.
        data: to trace for.
        changes: whether it changes the state; else it gives none back.
        alone: whether it is of one member, and not of a population.
        donate: whether the state's buffers may be reused.

    Returns:
        The traced function, and the shapes of (metrics, steps taken), of a population also of which
        members live.
    """
    measured: list[PyTree] = []

    def whole(state: TrainState, data: Any) -> tuple[PyTree, PyTree, jax.Array]:
        if isinstance(run, ScannedStep):
            after, packed, (one, taken) = run.packed(state, data)
            output, numbers = None, (_stacked(one, len(packed)), taken)
        else:
            after, output, numbers = _run_measured(run, name, state, data, alone=alone)
            packed = pack(numbers)
        if alone:
            check_metrics(numbers[0], reduce, name)
        measured.append(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), numbers))
        return after if changes else None, output, packed

    with jax.disable_jit(False):
        traced = jax.jit(whole, donate_argnums=(0,) if donate else ()).trace(state, data)
    return traced, measured[0]


def jit_for_debugging(
    run: PhaseFunction, name: str, *, changes: bool, alone: bool
) -> Callable[..., Any]:
    """Jit what `trace` traces, for JAX to look into its calls and at the numbers before packing."""

    def whole(state: TrainState, data: Any) -> tuple[PyTree, PyTree, jax.Array, PyTree]:
        after, output, numbers = _run_measured(run, name, state, data, alone=alone)
        return after if changes else None, output, pack(numbers), numbers

    return jax.jit(whole)


def _run_measured(
    run: PhaseFunction, name: str, state: TrainState, data: Any, *, alone: bool
) -> tuple[TrainState, PyTree, tuple[Any, ...]]:
    """Run, and give beside its metrics the steps taken and, of a population, who lives."""
    after, output, metrics = run_checked(run, name, state, data)
    live = () if alone else (state.carry[LIVE],)
    return after, output, (metrics, after.step - state.step, *live)


def run_checked(
    run: PhaseFunction, name: str, state: TrainState, data: Any
) -> tuple[TrainState, PyTree, dict[str, Any]]:
    """Run, while tracing, and check that what comes back is a state as it was given.

    Raises:
        TypeError, ValueError: it is not, or the one that was given was changed in place.
    """
    shadow = MutationGuard(state)
    result = run(state, data)
    shadow.check_unchanged(f"phase {name!r}")
    if not isinstance(result, tuple) or len(result) != 3:
        raise TypeError(
            f"phase {name!r} must return (state, output, metrics); got {describe_value(result)}"
        )
    after, output, metrics = result
    metrics = to_arrays(metrics, name)
    return check_structure(state, after, f"phase {name!r}"), output, metrics


def compute_signature(tree: PyTree, *, placed: bool = False) -> Any:
    """Tell structures, shapes and types apart, and where leaves lie if that matters."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple(
        (leaf.shape, leaf.dtype, getattr(leaf, "sharding", None) if placed else None)
        for leaf in leaves
    )


def _stacked(shapes: PyTree, steps: int) -> PyTree:
    """Give the shapes of what many steps report."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((steps, *x.shape), x.dtype), shapes)
