"""Steps and measures: functions of a state and a batch, and what a phase must know about them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from trainer.checks.arguments import describe_value
from trainer.data.source import Check
from trainer.losses.loss import check_per_example
from trainer.phases.buffers.state_buffers import check_structure
from trainer.phases.host_metrics.collected import COLLECTED, SplitMetrics
from trainer.phases.in_place_changes import MutationGuard
from trainer.phases.reductions import Finalize, to_arrays
from trainer.state import TrainState

StepFunction = Callable[[TrainState, Any], tuple[TrainState, dict[str, Any]]]
"""`(state, batch) -> (state, metrics)`, jittable."""

MeasureFunction = Callable[[TrainState, Any], Mapping[str, Any]]
"""`(state, batch) -> {name: values [batch], or a pair (values, weights)}`, jittable."""


@dataclasses.dataclass(frozen=True)
class Step:
    """A training step with what a phase must know about it; call it like its function.

    A plain function is a step, too; it needs no record.
    """

    function: StepFunction
    check: Check | None = None
    """`(state, batch)`: raises if host data does not suit the task."""
    finalize: Finalize | None = None
    """`(means) -> {name: value}`, of an epoch: see `Phase`."""
    check_independence: Check | None = None
    """`(state, batch of real examples)`: raises if the values of an example depend on others."""

    def __call__(self, state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Any]]:
        """Call the function."""
        return self.function(state, batch)


@dataclasses.dataclass(frozen=True)
class Measure:
    """A measure with what a phase must know about it; call it like its function.

    A plain function is a measure, too, unless it needs the whole batch:

    >>> def contrast(state, batch):
    ...     return {"error": abs(batch["inputs"] - batch["inputs"].mean())}
    >>> Measure(contrast, whole_batch=True)(None, {"inputs": jnp.array([1.0, 3.0])})
    {'error': Array([1., 1.], dtype=float32)}
    """

    function: MeasureFunction
    check: Check | None = None
    """`(state, batch)`: raises if host data does not suit the task."""
    finalize: Finalize | None = None
    """`(means) -> {name: value}`, of an epoch: see `Phase`."""
    check_independence: Check | None = None
    """`(state, batch of real examples)`: raises if the values of an example depend on others."""
    whole_batch: bool = False
    """Whether the values of an example depend on the other examples of its batch."""
    split_metrics: Mapping[str, SplitMetrics] = dataclasses.field(default_factory=dict, hash=False)
    """Metrics of what the function collects at `COLLECTED`, see `trainer.measures`."""

    def __call__(self, state: TrainState, batch: Any) -> Mapping[str, Any]:
        """Call the function."""
        return self.function(state, batch)


def as_step(step: Step | StepFunction) -> Step:
    """Return a step as a record."""
    return step if isinstance(step, Step) else Step(step)


def as_measure(measure: Measure | MeasureFunction) -> Measure:
    """Return a measure as a record."""
    return measure if isinstance(measure, Measure) else Measure(measure)


def join_measures(measures: Sequence[Measure]) -> Measure:
    """Return one measure that reports what several do, in one pass over the data.

    >>> parts = [Measure(lambda state, batch, n=n: {n: batch}) for n in ("one", "two")]
    >>> join_measures(parts)(None, 3)
    {'one': 3, 'two': 3}
    """
    if len(measures) == 1:
        return measures[0]

    def measure(state: TrainState, batch: Any) -> dict[str, Any]:
        joined: dict[str, Any] = {}
        for number, part in enumerate(measures):
            values = dict(part(state, batch))
            for key, collected in values.pop(COLLECTED, {}).items():
                joined.setdefault(COLLECTED, {})[f"{number} {key}"] = collected
            if twice := values.keys() & joined.keys():
                raise ValueError(f"two measures of one phase report {sorted(twice)[0]!r}")
            joined |= values
        return joined

    def check(state: TrainState, batch: Any) -> None:
        for part in measures:
            if part.check is not None:
                part.check(state, batch)

    def finalize(means: Mapping[str, float]) -> dict[str, float | None]:
        found = (part.finalize(means) for part in measures if part.finalize is not None)
        return {name: value for values in found for name, value in values.items()}

    parts = [
        (f"{n} {key}", one) for n, m in enumerate(measures) for key, one in m.split_metrics.items()
    ]
    whole = any(part.whole_batch for part in measures)
    return Measure(measure, check, finalize, whole_batch=whole, split_metrics=dict(parts))


@dataclasses.dataclass(frozen=True)
class CheckedStep:
    """A step whose result is checked while it is traced; equal if the function is the same."""

    owner: StepFunction
    phase: str = dataclasses.field(compare=False)

    def __call__(self, state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Any]]:
        """Run the step and check its result."""
        who = f"the step of phase {self.phase!r}"
        guard = MutationGuard(state)
        result = self.owner(state, batch)
        guard.check_unchanged(who)
        if not isinstance(result, tuple) or len(result) != 2:
            remedy = ": training takes task.step" if isinstance(result, Mapping) else ""
            raise TypeError(
                f"{who} must return (state, metrics); got {describe_value(result)}{remedy}"
            )
        after, metrics = result[0], to_arrays(result[1], self.phase)
        return check_structure(state, after, who), metrics


@dataclasses.dataclass(frozen=True)
class CheckedMeasure:
    """A measure as a step that sums under a mask; equal if the function is the same."""

    owner: MeasureFunction
    phase: str = dataclasses.field(compare=False)

    def __call__(self, state: TrainState, row: Any) -> tuple[TrainState, dict[str, Any]]:
        """Measure a batch, check the result, and sum it."""
        who, (batch, mask) = f"the measure of phase {self.phase!r}", row
        guard = MutationGuard(state)
        measured = self.owner(state, batch)
        guard.check_unchanged(who)
        if not isinstance(measured, Mapping):
            remedy = ": evaluation takes task.measure" if isinstance(measured, tuple) else ""
            raise TypeError(
                f"{who} must return {{name: values}}; got {describe_value(measured)}{remedy}"
            )
        means = {name: value for name, value in measured.items() if name != COLLECTED}
        result: dict[str, Any] = {n: _sum_masked(n, values, mask) for n, values in means.items()}
        if COLLECTED in measured:
            values = jax.tree.map(jnp.asarray, measured[COLLECTED])
            result[COLLECTED] = {"values": values, "mask": mask}
        return state, result


def _sum_masked(name: str, values: Any, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sum under a mask, by `where` and not by a product: 0 * nan leaks."""
    check_per_example("measure", name, values, len(mask))
    if not isinstance(values, tuple):
        return jnp.sum(values, where=mask), jnp.sum(mask, dtype=jnp.int32)
    values, weights = values
    counted = mask & (weights != 0)
    return jnp.sum(values * weights, where=counted), jnp.sum(weights, where=mask)
