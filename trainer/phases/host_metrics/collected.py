"""Values that an evaluation collects over a split, and metrics computed of them at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from trainer.checks.arguments import describe_value
from trainer.host.exception_notes import annotate_errors
from trainer.phases.metrics import compute_members
from trainer.state import PyTree

COLLECTED = "collected."
"""The entry of measured values, among means, that holds what is collected."""


class SplitMetrics(NamedTuple):
    """Metrics that are computed on the host of what was collected over a whole split.

    What is collected is a pytree of arrays.
    """

    names: Callable[[PyTree], Sequence[str]]
    """`(collected) -> names`, of arrays or of their shapes."""
    compute: Callable[[PyTree], Mapping[str, Any]]
    """`(collected) -> {name: number}`, of numpy arrays `[examples, ...]` in the order of the split,
    without padding; or if by batch, of a list of what was collected of each."""
    by_batch: bool = False
    """Whether what is collected belongs to a batch, and has no axis of examples."""


def list_collected_names(
    metrics: Mapping[str, Any], split_metrics: Mapping[str, SplitMetrics], phase: str
) -> list[str]:
    """Return the names of the metrics of a split, of what a phase measures or of its shapes.

    Raises:
        ValueError: two metrics have one name.
    """
    if COLLECTED not in metrics:
        return []
    values = metrics[COLLECTED]["values"]
    found = [name for key, one in split_metrics.items() for name in one.names(values[key])]
    if twice := [name for name in found if found.count(name) > 1 or name in metrics]:
        raise ValueError(
            f"phase {phase!r} has several metrics named {twice[0]!r}: give them names of their own"
        )
    return [f"{phase}/{name}" for name in found]


def compute_split_metrics(
    pieces: Sequence[Mapping[str, Any]],
    split_metrics: Mapping[str, SplitMetrics],
    phase: str,
    live: np.ndarray | None,
) -> dict[str, float]:
    """Compute the metrics of a split, one float each, a `Members` for a population.

    A piece of the epoch holds at `COLLECTED` a dict of `values`, by key of `split_metrics`, pytrees
    of `[steps, ...]`, and of `mask`, bool `[steps, batch]`. Of a population each has a leading axis
    `[members]`; `live` is bool `[members]`. A member that is not live, and for which a metric
    fails, has no value.

    Raises:
        TypeError: a metric is no number.
        ValueError: two metrics have one name.
    """
    list_collected_names(pieces[0], split_metrics, phase)  # each has a name of its own
    parts = [piece[COLLECTED] for piece in pieces]
    if live is None:
        return _compute_one(parts, split_metrics, phase)

    def compute_member(member: int) -> dict[str, float]:
        mine = jax.tree.map(lambda leaf: leaf[member], parts)
        return _compute_one(mine, split_metrics, phase)

    return compute_members(compute_member, live)


def _compute_one(
    parts: Sequence[Mapping[str, Any]], split_metrics: Mapping[str, SplitMetrics], phase: str
) -> dict[str, float]:
    return {
        f"{phase}/{name}": value
        for key, one in split_metrics.items()
        for name, value in _compute_entry(parts, key, one, phase)
    }


def _compute_entry(
    parts: Sequence[Mapping[str, Any]], key: str, one: SplitMetrics, phase: str
) -> Iterator[tuple[str, float]]:
    collected: Any
    if one.by_batch:
        collected = [batch for part in parts for batch in _list_batches(part, key)]
    else:
        real = [_leave_out_padding(part["values"][key], part["mask"]) for part in parts]
        collected = jax.tree.map(lambda *leaves: np.concatenate(leaves), *real)
    names = ", ".join(one.names(parts[0]["values"][key]))
    with annotate_errors(f"in computing {names} of the whole split of phase {phase!r}"):
        computed = one.compute(collected)
    for name, value in computed.items():
        if np.ndim(value) or not hasattr(type(value), "__float__"):
            raise TypeError(
                f"metric {name!r} of phase {phase!r} must be a number; got "
                f"{describe_value(value)}: return its entries under names of their own"
            )
        yield name, float(value)


def _list_batches(part: Mapping[str, Any], key: str) -> list[PyTree]:
    """Split `[steps, ...]` into the values of each batch."""
    steps = range(len(part["mask"]))
    return [jax.tree.map(lambda leaf, step=step: leaf[step], part["values"][key]) for step in steps]


def _leave_out_padding(values: PyTree, mask: np.ndarray) -> PyTree:
    """Join steps and examples, `[steps, batch, ...]`, to `[examples, ...]` of real ones."""
    real = mask.astype(bool).ravel()
    return jax.tree.map(lambda leaf: leaf.reshape(len(real), *leaf.shape[2:])[real], values)
