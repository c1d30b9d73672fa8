"""Summaries: the leaves of parameters or of a state as a table, with their totals."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax

from trainer.checks.pytrees import format_path
from trainer.host.plain_tables import align_columns
from trainer.state import PyTree, TrainState

OTHERS = ("model_state", "opt_state", "carry", "hook_state")
"""Other parts of a state with many leaves; each is one row."""


@dataclasses.dataclass(frozen=True)
class SummaryRow:
    """A leaf, or a part of a state."""

    path: str
    shape: tuple[int, ...] | None
    """None for a part with several leaves."""
    dtype: str
    count: int
    """The number of elements."""
    bytes: int


@dataclasses.dataclass(frozen=True)
class Summary:
    """The result of `trainer.summary`; its `str` is a table."""

    rows: tuple[SummaryRow, ...]
    """One for each leaf of the parameters."""
    others: tuple[SummaryRow, ...] = ()
    """One for each other part of a state that is not empty."""

    @property
    def count(self) -> int:
        """The number of parameters."""
        return sum(row.count for row in self.rows)

    @property
    def bytes(self) -> int:
        """The size of the parameters, together with the rest of a state."""
        return sum(row.bytes for row in (*self.rows, *self.others))

    def __str__(self) -> str:
        params = sum(row.bytes for row in self.rows)
        total = ("parameters", "", "", f"{self.count:,}", f"{params:,}")
        cells = [("path", "shape", "dtype", "count", "bytes"), *map(_cells, self.rows), total]
        if self.others:
            cells += [*map(_cells, self.others), ("state", "", "", "", f"{self.bytes:,}")]
        return align_columns(cells, right=(3, 4))


def summary(params: PyTree) -> Summary:
    """Summarise parameters leaf by leaf, and the other parts of a state in one line each.

    Shapes are enough, as from `jax.eval_shape(task.init, key, batch)`, so the model need not fit in
    memory.

    Args:
        params: pytree of arrays or of their shapes, or a `TrainState` of them.

    >>> import jax.numpy as jnp
    >>> params = {"layers": [{"kernel": jnp.ones((64, 10)), "bias": jnp.ones(10, jnp.bfloat16)}]}
    >>> print(summary(params))
    path             shape     dtype     count  bytes
    layers/0/bias    [10]      bfloat16     10     20
    layers/0/kernel  [64, 10]  float32     640  2,560
    parameters                             650  2,580
    """
    if not isinstance(params, TrainState):
        return Summary(_rows(params))
    parts = {name: _rows(getattr(params, name)) for name in OTHERS}
    others = tuple(_sum(name, rows) for name, rows in parts.items() if rows)
    return Summary(_rows(params.params), others)


def _rows(tree: PyTree) -> tuple[SummaryRow, ...]:
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    return tuple(_row(format_path(path), leaf) for path, leaf in pairs)


def _row(path: str, leaf: Any) -> SummaryRow:
    if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
        return SummaryRow(path, (), type(leaf).__name__, 1, 0)
    count = math.prod(leaf.shape)
    return SummaryRow(path, tuple(leaf.shape), str(leaf.dtype), count, count * leaf.dtype.itemsize)


def _sum(name: str, rows: tuple[SummaryRow, ...]) -> SummaryRow:
    types = ", ".join(sorted({row.dtype for row in rows}))
    count, size = sum(row.count for row in rows), sum(row.bytes for row in rows)
    return SummaryRow(name, None, types, count, size)


def _cells(row: SummaryRow) -> tuple[str, ...]:
    shape = "" if row.shape is None else str(list(row.shape))
    return row.path, shape, row.dtype, f"{row.count:,}", f"{row.bytes:,}"
