"""Summaries: the leaves of parameters or of a state as a table, with their totals."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
from jax.sharding import NamedSharding

from trainer.checks.pytrees import format_path
from trainer.host.rendering.html_tables import render_table
from trainer.host.rendering.plain_tables import align_columns
from trainer.state import PyTree, TrainState

OTHERS = ("model_state", "opt_state", "carry", "hook_state")
"""Other parts of a state with many leaves; each is one row."""

RIGHT = (3, 4, 6)
"""The numbers of the columns that are aligned at the right."""


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
    device_bytes: int
    """On each device: fewer than `bytes` where a leaf is split over a mesh."""
    split: str = ""
    """How a leaf is split over a mesh: `-, data`, an axis or none for each dimension."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """The result of `trainer.summary`; its `str` is a table, as which a notebook shows it."""

    rows: tuple[SummaryRow, ...]
    """One for each leaf of the parameters."""
    others: tuple[SummaryRow, ...] = ()
    """One for each other part of a state that is not empty."""
    on_mesh: bool = False
    """Whether the leaves lie on a mesh of devices; the table then says how they are split."""

    @property
    def count(self) -> int:
        """The number of parameters."""
        return sum(row.count for row in self.rows)

    @property
    def bytes(self) -> int:
        """The size of the parameters, together with the rest of a state."""
        return sum(row.bytes for row in (*self.rows, *self.others))

    @property
    def device_bytes(self) -> int:
        """The size of all this on each device."""
        return sum(row.device_bytes for row in (*self.rows, *self.others))

    def __str__(self) -> str:
        return align_columns([self._heads(), *self._list_cells()], right=RIGHT)

    def _repr_html_(self) -> str:
        return render_table(self._heads(), self._list_cells(), right=RIGHT)

    def _heads(self) -> tuple[str, ...]:
        heads = ("path", "shape", "dtype", "count", "bytes", "split", "bytes a device")
        return heads if self.on_mesh else heads[:5]

    def _list_cells(self) -> list[tuple[str, ...]]:
        params = dataclasses.replace(_sum("parameters", self.rows), dtype="")
        cells = [*map(_cells, (*self.rows, params))]
        if self.others:
            total = ("state", "", "", "", f"{self.bytes:,}", "", f"{self.device_bytes:,}")
            cells += [*map(_cells, self.others), total]
        return [row[: len(self._heads())] for row in cells]


def summary(params: PyTree) -> Summary:
    """Summarise parameters leaf by leaf, and the other parts of a state in one line each.

    Shapes are enough, as from `jax.eval_shape(task.init, key, batch)`, so the model need not fit in
    memory. Of a state on a mesh, the table also says how each leaf is split, and its bytes on each
    device.

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
    on_mesh = any(isinstance(_sharding(leaf), NamedSharding) for leaf in jax.tree.leaves(params))
    if not isinstance(params, TrainState):
        return Summary(_rows(params), on_mesh=on_mesh)
    parts = {name: _rows(getattr(params, name)) for name in OTHERS}
    others = tuple(_sum(name, rows) for name, rows in parts.items() if rows)
    return Summary(_rows(params.params), others, on_mesh)


def _rows(tree: PyTree) -> tuple[SummaryRow, ...]:
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    return tuple(_row(format_path(path), leaf) for path, leaf in pairs)


def _row(path: str, leaf: Any) -> SummaryRow:
    if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
        return SummaryRow(path, (), type(leaf).__name__, 1, 0, 0)
    count, size, split = math.prod(leaf.shape), leaf.dtype.itemsize, ""
    here, sharding = count, _sharding(leaf)
    if isinstance(sharding, NamedSharding):
        here = math.prod(sharding.shard_shape(leaf.shape))
        if not sharding.is_fully_replicated:
            split = ", ".join(_describe_axes(axes) for axes in sharding.spec)
    shape = tuple(leaf.shape)
    return SummaryRow(path, shape, str(leaf.dtype), count, count * size, here * size, split)


def _sharding(leaf: Any) -> Any:
    return getattr(leaf, "sharding", None)


def _describe_axes(axes: Any) -> str:
    return "*".join(axes) if isinstance(axes, tuple) else axes or "-"


def _sum(name: str, rows: tuple[SummaryRow, ...]) -> SummaryRow:
    types = ", ".join(sorted({row.dtype for row in rows}))
    count, size = sum(row.count for row in rows), sum(row.bytes for row in rows)
    return SummaryRow(name, None, types, count, size, sum(row.device_bytes for row in rows))


def _cells(row: SummaryRow) -> tuple[str, ...]:
    shape = "" if row.shape is None else str(list(row.shape))
    count, size, here = (f"{n:,}" for n in (row.count, row.bytes, row.device_bytes))
    return row.path, shape, row.dtype, count, size, row.split, here
