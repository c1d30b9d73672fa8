"""Metrics of a whole split, by any function of all examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from trainer.checks.arguments import describe_value, require_function
from trainer.checks.pytrees import format_path
from trainer.phases.batch_functions import Measure
from trainer.phases.host_metrics.collected import COLLECTED, SplitMetrics
from trainer.state import PyTree, TrainState


def over_split(
    values: Callable[[TrainState, Any], PyTree],
    metrics: Mapping[str, Callable[[Any], Any]],
    *,
    whole_batch: bool = False,
) -> Measure:
    """Build a measure whose metrics are computed of all examples at the end of a split.

    `values` runs on the device, batch by batch. What it returns is kept until the end of the split,
    so it should return what the metrics need, such as a class, and not all of the outputs. Then
    the metrics are called on the host, once, so they are exact at any batch size, and functions of
    any library will do: of scikit-learn, or `update` and `compute` of torchmetrics.

    Args:
        values: `(state, batch)` to a pytree of arrays `[batch, ...]`, jittable. The values of an
            example depend on it alone.
        metrics: by name, `(collected) -> number`: the same pytree, of numpy arrays
            `[examples, ...]`, in the order of the split and without padding.
        whole_batch: whether an example's values depend on others of its batch; the last batch is
            then computed at its own size.

    Returns:
        A measure for `trainer.evaluation`, alone or in a list with others.

    Raises:
        TypeError: an argument is something else.
        ValueError: there is no metric; when traced, values have no axis of examples.

    >>> import numpy as np
    >>> from trainer import data, evaluate, evaluation
    >>> middle = over_split(lambda state, batch: batch["inputs"], {"median": np.median})
    >>> source = data.Arrays({"inputs": np.array([1.0, 9.0, 2.0, 3.0, 4.0])}, batch_size=2)
    >>> state = TrainState.create(params={}, rng=jax.random.key(0))
    >>> evaluate(state, evaluation(middle, source))
    {'val/median': 3.0}
    """
    require_function("over_split takes values, which", values, "(state, batch) -> arrays")
    if not isinstance(metrics, Mapping):
        raise TypeError(
            "over_split takes metrics as a dict, a name to a function of what is collected; got "
            f"{describe_value(metrics)}"
        )
    if not metrics:
        raise ValueError("over_split needs a metric; got none")
    for name, metric in metrics.items():
        require_function(f"the metric {name!r} of over_split", metric, "(collected) -> number")

    def collect(state: TrainState, batch: Any) -> dict[str, Any]:
        found, examples = values(state, batch), len(jax.tree.leaves(batch)[0])
        for path, leaf in jax.tree_util.tree_leaves_with_path(found):
            if getattr(leaf, "shape", ())[:1] != (examples,):
                raise ValueError(
                    f"over_split collects arrays whose first axis is the {examples} examples of a "
                    f"batch; got {format_path(path) or 'values'}, {describe_value(leaf)}"
                )
        return {COLLECTED: {"split": found}}

    def compute(collected: PyTree) -> dict[str, Any]:
        return {name: metric(collected) for name, metric in metrics.items()}

    split = SplitMetrics(lambda collected: list(metrics), compute)
    return Measure(collect, whole_batch=whole_batch, split_metrics={"split": split})
