"""The phases `training` and `evaluation`, which repeat a step or a measure over a source."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from trainer.checks.arguments import describe_value, require_function
from trainer.data.iteration.unpadded import unpad_feed
from trainer.data.source import Check, Source, require_source
from trainer.phases.batch_functions import (
    CheckedMeasure,
    CheckedStep,
    Measure,
    MeasureFunction,
    Step,
    StepFunction,
    as_measure,
    as_step,
)
from trainer.phases.compilation import get_shared_cache
from trainer.phases.executors import RepeatedStep, ScannedStep, require_executor
from trainer.phases.mixing_trial import require_independent_measure
from trainer.phases.phase import Phase
from trainer.state import TrainState


def training(
    step: Step | StepFunction,
    source: Source,
    *,
    name: str = "train",
    executor: str = "auto",
    reduce: Mapping[str, str] | None = None,
) -> Phase:
    """Build a phase that repeats an update over a source.

    Args:
        step: `(state, batch) -> (state, metrics)`, one optimizer update, jittable; metrics are
            scalars `()`. Beside a metric `x` it may report `x.weight`: the weight of this step in
            the epoch's mean of `x`. A step of `supervised` does where examples weigh differently.
        source: of batches; shuffled again in every epoch, whole batches only.
        name: of the phase and its event.
        executor: `scan` (one compiled scan per epoch; a long one runs in up to 16 dispatches of
            equal bits), `step` (one dispatch per step), or `auto`: `scan`, except on CPU for a step
            with a convolution, which XLA runs several times slower in a loop.
        reduce: how the trace of a metric becomes the epoch's value: mean, sum, last or max.

    Raises:
        TypeError: the source is not a source.
        ValueError: an unknown executor, or a source with fewer examples than a batch; before the
            first use, micro-batches would change the values of the loss.
    """
    step = as_step(step)
    _require_function("training takes a step, which", "step", step, "-> (state, metrics)")
    require_source(source, "training", "training")
    require_executor(executor)
    if reduce is not None and not isinstance(reduce, Mapping):
        raise TypeError(
            f"phase {name!r} takes reduce as a dict, a metric to how it is reduced, such as "
            f'{{"tokens": "sum"}}; got {describe_value(reduce)}'
        )
    feed, checked = source.training(), CheckedStep(step.function, name)
    scan = ScannedStep(checked, feed.rows, feed.batch, updates_state=True)
    return Phase(
        name,
        scan,
        source,
        reduce or {},
        repeated_step=RepeatedStep(scan, feed, executor),
        check_data=step.check,
        finalize=step.finalize,
        check_independence=_check_once(step.check_independence, checked, source),
    )


def evaluation(measure: Measure | MeasureFunction, source: Source, *, name: str = "val") -> Phase:
    """Build a phase that measures a whole split exactly, ragged tail included, at any batch size.

    The last batch is padded with copies, which do not count. A loss or a measure whose values for
    an example depend on other examples of the batch declares it, as in
    `trainer.Measure(measure, whole_batch=True)`: its last batch is computed at its own size. Where
    a split may end in a smaller batch, the phase checks before its first use that no other measure
    depends on them.

    Args:
        measure: `(state, batch) -> {name: values}`, jittable, values `[batch]` or a pair (values,
            weights) of `[batch]` each where examples weigh differently.
        source: of batches, read in order.
        name: prefix of the metrics.

    Raises:
        TypeError: the source is not a source.
        ValueError: before the first use, the values of an example change with the other examples
            of its batch, and neither loss nor measure declares it.
    """
    measure = as_measure(measure)
    who, returns = "evaluation takes a measure, which", "-> {name: values}"
    _require_function(who, "measure", measure, returns)
    require_source(source, "evaluation", "evaluation")
    feed, independence = source.evaluation(), None
    if measure.whole_batch:
        feed = unpad_feed(feed)
    elif _may_end_smaller(source):
        independence = measure.check_independence or functools.partial(
            require_independent_measure, measure.function
        )
    checked = CheckedMeasure(measure.function, name)
    scan = ScannedStep(checked, feed.rows, feed.batch, updates_state=False)
    return Phase(
        name,
        scan,
        source,
        repeated_step=RepeatedStep(scan, feed, "auto"),
        check_data=measure.check,
        updates_state=False,
        finalize=measure.finalize,
        check_independence=_check_once(independence, checked, source),
    )


def _may_end_smaller(source: Any) -> bool:
    """Return whether the last batch may be smaller; True for a stream, whose size is unknown."""
    size, batch_size = getattr(source, "size", None), getattr(source, "batch_size", None)
    return not (isinstance(size, int) and isinstance(batch_size, int) and size % batch_size == 0)


def _check_once(
    check: Check | None, step: CheckedStep | CheckedMeasure, source: Source
) -> Callable[[TrainState], None] | None:
    """Return a check of independence that runs once per step and shape of a batch."""
    if check is None:
        return None
    checked = get_shared_cache(step, "independence").compiled

    def check_once(state: TrainState) -> None:
        shapes = str(jax.tree.map(jnp.shape, source.example))
        if shapes not in checked:
            check(state, source.example)
            checked[shapes] = True

    return check_once


def _require_function(who: str, name: str, record: Step | Measure, returns: str) -> None:
    """Check that a step or measure can be called with (state, batch)."""
    given, remedy = record.function, ""
    if hasattr(given, name):
        remedy = f"give its {name}, task.{name}"
    elif hasattr(given, "example"):
        remedy = f"it comes first, then the source: ({name}, source)"
    require_function(who, given, f"(state, batch) {returns}", remedy)
