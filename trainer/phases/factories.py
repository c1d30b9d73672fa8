"""The phases `training` and `evaluation`, which repeat a step or a measure, and `evaluate`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
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
    join_measures,
)
from trainer.phases.compilation import compile_side_by_side, get_shared_cache
from trainer.phases.executors import RepeatedStep, ScannedStep, require_executor
from trainer.phases.mixing_trial import require_independent_measure
from trainer.phases.phase import Phase
from trainer.state import TrainState, attach_host_fields, require_state, strip_host_fields


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
        reduce: how the trace of a metric becomes the epoch's value: mean, sum, first, last or max.

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


def evaluation(
    measure: Measure | MeasureFunction | Sequence[Measure | MeasureFunction],
    source: Source,
    *,
    name: str = "val",
) -> Phase:
    """Build a phase that measures a whole split exactly, ragged tail included, at any batch size.

    The last batch is padded with copies, which do not count. A loss or a measure whose values for
    an example depend on other examples of the batch declares it, as in
    `trainer.Measure(measure, whole_batch=True)`: its last batch is computed at its own size. Where
    a split may end in a smaller batch, the phase checks before its first use that no other measure
    depends on them.

    Args:
        measure: `(state, batch) -> {name: values}`, jittable, values `[batch]` or a pair (values,
            weights) of `[batch]` each where examples weigh differently; or one of
            `trainer.measures`; or a list of several, with names of their own.
        source: of batches, read in order.
        name: prefix of the metrics.

    Raises:
        TypeError: the source is not a source.
        ValueError: before the first use, the values of an example change with the other examples
            of its batch, and neither loss nor measure declares it.
    """
    several: list[Any] = list(measure) if isinstance(measure, list | tuple) else [measure]
    if not several:
        raise ValueError("evaluation needs a measure, or several; got an empty list")
    measures = [as_measure(one) for one in several]
    who, returns = "evaluation takes a measure, which", "-> {name: values}"
    for one in measures:
        _require_function(who, "measure", one, returns)
    joined = join_measures(measures)
    require_source(source, "evaluation", "evaluation")
    feed, independence = source.evaluation(), None
    if joined.whole_batch:
        feed = unpad_feed(feed)
    elif _may_end_smaller(source):
        independence = functools.partial(_require_independent_measures, measures)
    checked = CheckedMeasure(joined.function, name)
    scan = ScannedStep(checked, feed.rows, feed.batch, updates_state=False)
    return Phase(
        name,
        scan,
        source,
        repeated_step=RepeatedStep(scan, feed, "auto"),
        check_data=joined.check,
        updates_state=False,
        finalize=joined.finalize,
        check_independence=_check_once(independence, checked, source),
        split_metrics=joined.split_metrics,
    )


def _require_independent_measures(
    measures: Sequence[Measure], state: TrainState, batch: Any
) -> None:
    for measure in measures:
        if measure.check_independence is not None:
            measure.check_independence(state, batch)
        else:
            require_independent_measure(measure.function, state, batch)


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


def evaluate(state: TrainState, phases: Phase | Sequence[Phase]) -> dict[str, float]:
    """Measure a state exactly on one or several splits.

    With `restore`, two lines evaluate the checkpoint of another run:

        state = trainer.restore("runs/digits", task.init(key, train.example), best="val/loss")
        scores = trainer.evaluate(state, trainer.evaluation(task.measure, test, name="test"))

    Args:
        state: to measure; it stays unchanged.
        phases: from `trainer.evaluation`; their names are the prefixes of the scores.

    Returns:
        Scores by name, such as `test/loss` and `test/accuracy`.

    Raises:
        TypeError: an argument is not a phase.
        ValueError: a phase changes the state, two phases share a name, or there is no phase.

    >>> import numpy as np
    >>> from trainer import data, evaluation
    >>> source = data.Arrays({"inputs": np.arange(5.0)}, batch_size=2)
    >>> phase = evaluation(lambda state, batch: {"error": batch["inputs"] - state.params}, source)
    >>> evaluate(TrainState.create(params=jnp.float32(1), rng=jax.random.key(0)), phase)
    {'val/error': 1.0}
    """
    require_state("evaluate", state)
    chosen = check_evaluation_phases(phases)
    state = attach_host_fields(jax.tree.map(jnp.asarray, strip_host_fields(state)), state)
    for phase in chosen:
        phase.verify(state)
    examples = [phase.feed.example if phase.feed else None for phase in chosen]
    pairs = zip(chosen, examples, strict=True)
    compile_side_by_side({p.name: p.lower(state, data, donate=False) for p, data in pairs})
    measured = [phase.execute(state, None, donate=False)[2] for phase in chosen]
    return {name: score for one in measured for name, score in one.read()[0].items()}


def check_evaluation_phases(phases: Phase | Sequence[Phase]) -> tuple[Phase, ...]:
    """Return the phases of an evaluation as a tuple, after checking them.

    Raises:
        TypeError, ValueError: as `evaluate`.
    """
    several = isinstance(phases, Sequence) and not hasattr(phases, "_fields")
    chosen: tuple[Any, ...] = tuple(phases) if several else (phases,)  # type: ignore[arg-type]
    for phase in chosen:
        if not isinstance(phase, Phase):
            raise TypeError(
                f"evaluate takes phases made by trainer.evaluation; got {describe_value(phase)}: "
                "make one, trainer.evaluation(task.measure, source)"
            )
        if phase.updates_state:
            raise ValueError(
                f"evaluate needs phases that leave the state as it is, made by trainer.evaluation; "
                f"phase {phase.name!r} may change it"
            )
    names = [phase.name for phase in chosen]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"evaluate needs phases with names of their own; got {names}: "
            'trainer.evaluation(task.measure, test, name="test")'
        )
    return chosen
