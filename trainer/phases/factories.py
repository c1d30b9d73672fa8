"""Phases that repeat a step over a source: training, and exact evaluation."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from trainer.checks.arguments import describe_value, require_function
from trainer.checks.suggestions import suggest_name
from trainer.data.iteration.unpadded import unpad_feed
from trainer.data.source import Feed, Source, require_source
from trainer.losses.loss import check_per_example
from trainer.phases.executors import EXECUTORS, RepeatedStep, ScannedStep, Step
from trainer.phases.in_place_changes import MutationGuard
from trainer.phases.metrics import to_arrays
from trainer.phases.mixing_trial import Trial, require_independent_measure
from trainer.phases.phase import Phase
from trainer.phases.shared_compilation import get_shared_cache
from trainer.phases.state_buffers import check_structure
from trainer.state import TrainState

Measure = Callable[[TrainState, Any], Mapping[str, Any]]
"""`(state, batch) -> {name: values [batch], or a pair (values, weights)}`, jittable."""


def training(
    step: Step,
    source: Source,
    *,
    name: str = "train",
    executor: str = "auto",
    reduce: Mapping[str, str] | None = None,
) -> Phase:
    """Make a phase that repeats an update over a source.

    Args:
        step: `(state, batch) -> (state, metrics)`, one optimizer update, jittable; metrics are
            scalars `()`. Beside `x` may be `x.weight`: how much the step counts in the epoch's mean
            of `x`, as a step of `supervised` says where examples weigh differently.
        source: of batches; shuffled anew in every epoch, whole batches only.
        name: of the phase and its event.
        executor: `scan` (one program an epoch, a long one in up to 16 dispatches of equal bits),
            `step` (one dispatch a step), or `auto`: `scan`, except on CPU where the step convolves,
            which XLA runs several times slower in a loop.
        reduce: how a metric's trace becomes the epoch's value: mean, sum, last or max.

    Raises:
        TypeError: the source is none.
        ValueError: an unknown executor, or a source with fewer examples than a batch; before the
            first use, micro-batches would change what a loss gives.
    """
    step = _function("training takes a step, which", "step", step, "-> (state, metrics)")
    require_source(source, "training", "training")
    alone = getattr(step, "alone", None)
    feed, own = source.training(), _Training(step, name)
    return _repeated(own, feed, name, executor, reduce or {}, source, alone, changes=True)


def evaluation(measure: Measure, source: Source, *, name: str = "val") -> Phase:
    """Make a phase that measures a whole split exactly, ragged tail included, at any batch size.

    The last batch is filled up with copies, which do not count. What measures an example by others
    beside it says so by the attribute `whole_batch = True`, of a loss or of a measure: its last
    batch is computed at its own size. That nothing else does is tried before the first use, where a
    split may have such a batch.

    Args:
        measure: `(state, batch) -> {name: values}`, jittable, values `[batch]` or a pair (values,
            weights) of `[batch]` each where examples weigh differently.
        source: of batches, read in order.
        name: prefix of the metrics.

    Raises:
        TypeError: the source is none.
        ValueError: before the first use, an example is measured otherwise where others of its
            batch change, and nothing says so.
    """
    measure = _function(
        "evaluation takes a measure, which", "measure", measure, "-> {name: values}"
    )
    require_source(source, "evaluation", "evaluation")
    alone: Trial | None = None
    whole = bool(getattr(measure, "whole_batch", False))
    if not whole and _may_be_filled_up(source):
        alone = getattr(measure, "alone", functools.partial(require_independent_measure, measure))
    feed = unpad_feed(source.evaluation()) if whole else source.evaluation()
    own = _Measuring(measure, name)
    return _repeated(own, feed, name, "auto", {}, source, alone, changes=False)


def _may_be_filled_up(source: Any) -> bool:
    """Say whether the last batch may be smaller; of a stream nobody knows."""
    size, batch_size = getattr(source, "size", None), getattr(source, "batch_size", None)
    return not (isinstance(size, int) and isinstance(batch_size, int) and size % batch_size == 0)


@dataclasses.dataclass(frozen=True)
class _Training:
    """A step of training, checked; equal where the step is the same."""

    owner: Step
    phase: str = dataclasses.field(compare=False)

    def __call__(self, state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Any]]:
        shadow = MutationGuard(state)
        result = self.owner(state, batch)
        shadow.check_unchanged(f"the step of phase {self.phase!r}")
        if not isinstance(result, tuple) or len(result) != 2:
            remedy = ": training takes task.step" if isinstance(result, Mapping) else ""
            raise TypeError(
                f"the step of phase {self.phase!r} must return (state, metrics); got "
                f"{describe_value(result)}{remedy}"
            )
        after, metrics = result[0], to_arrays(result[1], self.phase)
        return check_structure(state, after, f"the step of phase {self.phase!r}"), metrics


@dataclasses.dataclass(frozen=True)
class _Measuring:
    """A step of an evaluation, which sums under a mask; equal where the measure is the same."""

    owner: Measure
    phase: str = dataclasses.field(compare=False)

    def __call__(self, state: TrainState, row: Any) -> tuple[TrainState, dict[str, Any]]:
        batch, mask = row
        shadow = MutationGuard(state)
        measured = self.owner(state, batch)
        shadow.check_unchanged(f"the measure of phase {self.phase!r}")
        if not isinstance(measured, Mapping):
            remedy = ": evaluation takes task.measure" if isinstance(measured, tuple) else ""
            raise TypeError(
                f"the measure of phase {self.phase!r} must return {{name: values}}; got "
                f"{describe_value(measured)}{remedy}"
            )
        return state, {name: _totals(name, values, mask) for name, values in measured.items()}


def _repeated(
    step: _Training | _Measuring,
    feed: Feed,
    name: str,
    executor: str,
    reduce: Mapping[str, str],
    source: Source,
    alone: Trial | None,
    *,
    changes: bool,
) -> Phase:
    if not isinstance(reduce, Mapping):
        raise TypeError(
            f"phase {name!r} takes reduce as a dict, a metric to how it is reduced, such as "
            f'{{"tokens": "sum"}}; got {describe_value(reduce)}'
        )
    if executor not in EXECUTORS:
        raise ValueError(
            "executor must be auto, scan or step; got "
            f"{executor!r}.{suggest_name(executor, EXECUTORS)}"
        )
    return Phase(
        name,
        ScannedStep(step, feed.rows, feed.batch, changes),
        source,
        reduce,
        RepeatedStep(step, feed, executor),
        getattr(step.owner, "check", None),
        changes,
        getattr(step.owner, "finalize", None),
        check_independence=_inspect(step, alone, source),
    )


def _inspect(
    step: _Training | _Measuring, alone: Trial | None, source: Source
) -> Callable[[TrainState], None] | None:
    """Make the trial of what must take each example alone, if it must.

    It is done once for a step and a form of a batch, whatever phases repeat it.
    """
    if alone is None:
        return None
    tried = get_shared_cache(step, "trial").programs

    def inspect(state: TrainState) -> None:
        form = str(jax.tree.map(jnp.shape, source.example))
        if form not in tried:
            alone(state, source.example)
            tried[form] = True

    return inspect


def _function(who: str, name: str, given: Any, returns: str) -> Any:
    """Return what a phase repeats, after checking that it can be called with (state, batch)."""
    remedy = ""
    if hasattr(given, name):
        remedy = f"give its {name}, task.{name}"
    elif hasattr(given, "example"):
        remedy = f"it comes first, then the source: ({name}, source)"
    require_function(who, given, f"(state, batch) {returns}", remedy)
    return given


def _totals(name: str, values: Any, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sum under a mask, by `where` and not by a product: 0 * nan leaks."""
    check_per_example("measure", name, values, len(mask))
    if not isinstance(values, tuple):
        return jnp.sum(values, where=mask), jnp.sum(mask, dtype=jnp.int32)
    values, weights = values
    counted = mask & (weights != 0)
    return jnp.sum(values * weights, where=counted), jnp.sum(weights, where=mask)
