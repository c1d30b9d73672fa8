"""Metrics that are computed batch by batch and merged, such as those of `clu.metrics`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trainer.checks.arguments import describe_value, require_function
from trainer.phases.batch_functions import Measure
from trainer.phases.host_metrics.collected import COLLECTED, SplitMetrics
from trainer.state import TrainState

WHO = "measures.merged"


def merged(metrics: Callable[[TrainState, Any], Any]) -> Measure:
    """Build a measure of metrics that know how to merge, such as a collection of `clu.metrics`.

    The metrics of a batch are computed on the device. At the end of the split they are merged and
    computed on the host, so they are what the metrics make of the whole split. The last batch has
    its own size, without padding.

    Args:
        metrics: `(state, batch)` to a collection of `clu.metrics`, or a dict of metrics by name,
            jittable. A metric is a pytree of arrays with `merge(other)` and `compute()`, as those
            of `clu.metrics` and of metrax.

    Returns:
        A measure for `trainer.evaluation`, alone or in a list with others.

    Raises:
        TypeError: it is no function; when traced, it returns something else.

    >>> import flax, jax
    >>> import numpy as np
    >>> from trainer import data, evaluate, evaluation
    >>> @flax.struct.dataclass
    ... class Largest:
    ...     value: jax.Array
    ...     def merge(self, other):
    ...         return Largest(max(self.value, other.value))
    ...     def compute(self):
    ...         return self.value
    >>> largest = merged(lambda state, batch: {"largest": Largest(batch["inputs"].max())})
    >>> source = data.Arrays({"inputs": np.array([1.0, 9.0, 2.0])}, batch_size=2)
    >>> state = TrainState.create(params={}, rng=jax.random.key(0))
    >>> evaluate(state, evaluation(largest, source))
    {'val/largest': 9.0}
    """
    require_function(f"{WHO} takes metrics, which", metrics, "(state, batch) -> metrics by name")

    def collect(state: TrainState, batch: Any) -> dict[str, Any]:
        return {COLLECTED: {"merged": _by_name(metrics(state, batch))}}

    def compute(batches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        def merge(name: str) -> Any:
            return functools.reduce(lambda a, b: a.merge(b), (batch[name] for batch in batches))

        return {name: merge(name).compute() for name in batches[0]}

    split = SplitMetrics(list, compute, by_batch=True)
    return Measure(collect, whole_batch=True, split_metrics={"merged": split})


def _by_name(metrics: Any) -> dict[str, Any]:
    """Return the metrics of a collection, which are its attributes, or of a dict."""
    if hasattr(metrics, "_reduction_counter"):
        metrics = {name: one for name, one in vars(metrics).items() if name[0] != "_"}
    if not isinstance(metrics, Mapping):
        raise TypeError(
            f"{WHO} needs a collection of clu.metrics or a dict of metrics by name; got "
            f'{describe_value(metrics)}: return {{"name": metric}}'
        )
    for name, metric in metrics.items():
        if not (hasattr(metric, "merge") and hasattr(metric, "compute")):
            raise TypeError(
                f"{WHO} needs metrics with merge(other) and compute(); got {name!r}, "
                f"{describe_value(metric)}"
            )
    return dict(metrics)
