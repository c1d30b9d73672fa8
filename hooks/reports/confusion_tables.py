"""Confusion matrices of a run, as tables: how many examples of a class are predicted as which."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from trainer.host.rendering.panels import CONFUSION, Curve

LARGEST = 50
"""Classes of a matrix that is shown, at most."""


class ConfusionTable(NamedTuple):
    """The last confusion matrix of a split."""

    epoch: float
    counts: list[list[float]]
    """By class, and then by predicted class."""


def collect_confusion(curves: Mapping[str, Curve]) -> dict[str, ConfusionTable]:
    """Collect the last matrix of each split from metrics such as `val/confusion/2/7`.

    >>> names = [f"val/confusion/{label}/{predicted}" for label in (0, 1) for predicted in (0, 1)]
    >>> curves = {name: Curve([1, 2], [0.0, float(n)]) for n, name in enumerate(names)}
    >>> collect_confusion(curves)
    {'val': ConfusionTable(epoch=2, counts=[[0.0, 1.0], [2.0, 3.0]])}
    """
    found: dict[str, dict[tuple[int, int], Curve]] = {}
    for name, curve in curves.items():
        if (match := CONFUSION.search(name)) and curve.values:
            pair = int(match[1]), int(match[2])
            found.setdefault(name[: match.start()], {})[pair] = curve
    tables = {}
    for split, cells in found.items():
        size = 1 + max(max(pair) for pair in cells)
        if size > LARGEST:
            continue
        counts = [[0.0] * size for _ in range(size)]
        for (label, predicted), curve in cells.items():
            last = curve.values[-1]
            counts[label][predicted] = last if math.isfinite(last) else 0.0
        tables[split] = ConfusionTable(max(c.epochs[-1] for c in cells.values()), counts)
    return tables


def render_confusion(table: ConfusionTable) -> str:
    """Render a matrix: a row for each class, darker where a larger share of the class is.

    >>> shown = render_confusion(ConfusionTable(3, [[1.0, 1.0], [0.0, 4.0]]))
    >>> shown.count("<tr>"), shown.count("--share:0.50"), shown.count('<td class="right"')
    (3, 2, 2)
    """
    classes = range(len(table.counts))
    head = "".join(f"<th>{number}</th>" for number in classes) + "<th>right</th>"
    rows = []
    for label, counts in enumerate(table.counts):
        whole = sum(counts)
        cells = "".join(
            f'<td class="{"right" if label == predicted else "wrong"}" '
            f'style="--share:{count / whole:.2f}">{count:g}</td>'
            if count
            else "<td></td>"
            for predicted, count in enumerate(counts)
        )
        share = f"{counts[label] / whole:.1%}" if whole else ""
        rows.append(f"<tr><th>{label}</th>{cells}<td>{share}</td></tr>")
    return (
        '<div class="card wide"><table class="confusion"><tr><th>class \\ predicted</th>'
        f"{head}</tr>{''.join(rows)}</table></div>"
    )
