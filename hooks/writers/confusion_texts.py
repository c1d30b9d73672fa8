"""Confusion matrices among values, as a text each instead of a number for each pair of classes."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real

from hooks.writers.values import Text, Value
from trainer.host.rendering.panels import CONFUSION

Cells = dict[tuple[int, int], float]
"""By class and predicted class."""


def join_confusion(values: Mapping[str, Value]) -> dict[str, Value]:
    """Replace the cells of each matrix, such as `val/confusion/2/7`, by a table in Markdown.

    The table is a `Text` at `val/confusion`. Other values stay, in their order.

    >>> joined = join_confusion({"val/loss": 0.5, "val/confusion/0/0": 3.0, "val/confusion/1/0": 2})
    >>> print(joined["val/loss"], joined["val/confusion"].text, sep="\\n")
    0.5
    | class, predicted | 0 | 1 |
    |---|---|---|
    | **0** | 3 | |
    | **1** | 2 | |
    """
    joined: dict[str, Value] = {}
    found: dict[str, Cells] = {}
    for name, value in values.items():
        match = CONFUSION.search(name)
        if match is None or not isinstance(value, Real):
            joined[name] = value
            continue
        pair = int(match[1]), int(match[2])
        found.setdefault(f"{name[: match.start()]}/confusion".lstrip("/"), {})[pair] = float(value)
    return joined | {name: Text(_tabulate(cells)) for name, cells in found.items()}


def _tabulate(cells: Cells) -> str:
    classes = range(1 + max(max(pair) for pair in cells))
    rows = [["class, predicted", *map(str, classes)]]
    for label in classes:
        counts = [cells.get((label, predicted), 0.0) for predicted in classes]
        rows.append([f"**{label}**", *(f"{count:g}" if count else "" for count in counts)])
    lines = ["".join(f" {cell} |" if cell else " |" for cell in row) for row in rows]
    lines.insert(1, "---|" * (len(classes) + 1))
    return "\n".join(f"|{line}" for line in lines)
