"""Phases that repeat a step over a source: training, and exact evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from trainer.arguments import in_words, require_function
from trainer.data.feed import Feed, Source, require_source
from trainer.executors import EXECUTORS, Repetition, Scanned, Step
from trainer.losses.contract import check_per_example
from trainer.metrics import as_arrays
from trainer.names import nearest
from trainer.phases import Phase
from trainer.shadow import Shadow
from trainer.state import TrainState
from trainer.structure import settled

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
        executor: `scan` (one program an epoch), `step` (one dispatch a step), or `auto`: `scan`,
            except on CPU where the step convolves, which XLA runs several times slower in a loop.
        reduce: how a metric's trace becomes the epoch's value: mean, sum, last or max.

    Raises:
        TypeError: the source is none.
        ValueError: an unknown executor, or a source with fewer examples than a batch.
    """
    step = _function("training takes a step, which", "step", step, "-> (state, metrics)")
    require_source(source, "training", "training")
    return _repeated(
        _Training(step, name), source.training(), name, executor, reduce or {}, source, changes=True
    )


def evaluation(measure: Measure, source: Source, *, name: str = "val") -> Phase:
    """Make a phase that measures a whole split exactly, ragged tail included, at any batch size.

    Args:
        measure: `(state, batch) -> {name: values}`, jittable, values `[batch]` or a pair (values,
            weights) of `[batch]` each where examples weigh differently.
        source: of batches, read in order.
        name: prefix of the metrics.

    Raises:
        TypeError: the source is none.
    """
    measure = _function(
        "evaluation takes a measure, which", "measure", measure, "-> {name: values}"
    )
    require_source(source, "evaluation", "evaluation")
    step = _Measuring(measure, name)
    return _repeated(step, source.evaluation(), name, "auto", {}, source, changes=False)


@dataclasses.dataclass(frozen=True)
class _Training:
    """A step of training, checked; equal where the step is the same."""

    owner: Step
    phase: str = dataclasses.field(compare=False)

    def __call__(self, state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Any]]:
        shadow = Shadow(state)
        result = self.owner(state, batch)
        shadow.refuse_changes(f"the step of phase {self.phase!r}")
        if not isinstance(result, tuple) or len(result) != 2:
            remedy = ": training takes task.step" if isinstance(result, Mapping) else ""
            raise TypeError(
                f"the step of phase {self.phase!r} must return (state, metrics); got "
                f"{in_words(result)}{remedy}"
            )
        after, metrics = result[0], as_arrays(result[1], self.phase)
        return settled(state, after, f"the step of phase {self.phase!r}"), metrics


@dataclasses.dataclass(frozen=True)
class _Measuring:
    """A step of an evaluation, which sums under a mask; equal where the measure is the same."""

    owner: Measure
    phase: str = dataclasses.field(compare=False)

    def __call__(self, state: TrainState, row: Any) -> tuple[TrainState, dict[str, Any]]:
        batch, mask = row
        shadow = Shadow(state)
        measured = self.owner(state, batch)
        shadow.refuse_changes(f"the measure of phase {self.phase!r}")
        if not isinstance(measured, Mapping):
            remedy = ": evaluation takes task.measure" if isinstance(measured, tuple) else ""
            raise TypeError(
                f"the measure of phase {self.phase!r} must return {{name: values}}; got "
                f"{in_words(measured)}{remedy}"
            )
        return state, {name: _totals(name, values, mask) for name, values in measured.items()}


def _repeated(
    step: _Training | _Measuring,
    feed: Feed,
    name: str,
    executor: str,
    reduce: Mapping[str, str],
    source: Source,
    *,
    changes: bool,
) -> Phase:
    if executor not in EXECUTORS:
        raise ValueError(
            f"executor must be auto, scan or step; got {executor!r}.{nearest(executor, EXECUTORS)}"
        )
    return Phase(
        name,
        Scanned(step, feed.rows, feed.batch, changes),
        source,
        reduce,
        Repetition(step, feed, executor),
        getattr(step.owner, "check", None),
        changes,
        getattr(step.owner, "finalize", None),
    )


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
