"""Summaries of a metric over the epochs: a few numbers and a small curve."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence

MAX_POINTS = 64
"""Points of a summary at most: beyond, two neighbours become one."""

BLOCKS = "▁▂▃▄▅▆▇█"

MAIN_METRICS = ("loss", "accuracy", "return", "reward", "perplexity")
"""Last parts of the names of metrics that come first, and have curves in the progress bar."""


@dataclasses.dataclass
class MetricSummary:
    """A metric over the epochs: its last, lowest and highest value, and points of its curve.

    >>> summary = MetricSummary()
    >>> for epoch, loss in enumerate([4.0, 2.0, 1.0, 3.0], 1):
    ...     summary.add(loss, epoch)
    >>> summary.last, summary.lowest, summary.highest, summary.sparkline(4)
    (3.0, (1.0, 3), (4.0, 1), '█▃▁▆')
    """

    last: float = math.nan
    lowest: tuple[float, int] = (math.inf, 0)
    highest: tuple[float, int] = (-math.inf, 0)
    points: list[float] = dataclasses.field(default_factory=list)
    """Means of `stride` values each; replaced when shortened, since another thread reads it."""
    stride: int = 1
    waiting: list[float] = dataclasses.field(default_factory=list)
    """Values that do not fill a point yet."""

    def add(self, value: float, epoch: int) -> None:
        """Add a value. Nan is neither lowest nor highest."""
        self.last = value
        if value < self.lowest[0]:
            self.lowest = value, epoch
        if value > self.highest[0]:
            self.highest = value, epoch
        self.waiting.append(value)
        if len(self.waiting) == self.stride:
            self.points.append(finite_mean(self.waiting))
            self.waiting = []
        if len(self.points) == MAX_POINTS:
            self.points = [finite_mean(self.points[at : at + 2]) for at in range(0, MAX_POINTS, 2)]
            self.stride *= 2

    def sparkline(self, width: int) -> str:
        """Draw the curve in `width` characters, or fewer if there are fewer points."""
        rest = [finite_mean(self.waiting)] if self.waiting else []
        return sparkline([*self.points, *rest], width)


def sparkline(values: Sequence[float], width: int) -> str:
    """Draw numbers as blocks, the lowest to the highest; one that is not finite leaves a gap.

    >>> sparkline([0.0, 1.0, math.nan, 3.0], 8), sparkline([2.0, 2.0], 8), sparkline(range(100), 4)
    ('▁▃ █', '▁▁', '▁▃▆█')
    """
    columns = min(width, len(values))
    edges = [place * len(values) // columns for place in range(columns + 1)] if columns else []
    heights = [finite_mean(values[a:b]) for a, b in itertools.pairwise(edges)]
    finite = [height for height in heights if math.isfinite(height)]
    low, span = (min(finite), max(finite) - min(finite)) if finite else (0.0, 0.0)
    scale = (len(BLOCKS) - 1) / span if 0 < span < math.inf else 0.0
    return "".join(
        BLOCKS[round((height - low) * scale)] if math.isfinite(height) else " "
        for height in heights
    )


def finite_mean(values: Sequence[float]) -> float:
    """Return the mean of the finite values; nan if there are none."""
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(value / len(finite) for value in finite) if finite else math.nan


def rank_metric(name: str) -> int:
    """Return a sort key that puts losses and scores before other metrics."""
    leaf = name.rpartition("/")[2]
    return MAIN_METRICS.index(leaf) if leaf in MAIN_METRICS else len(MAIN_METRICS)


def group_by_prefix(names: Iterable[str]) -> dict[str, list[str]]:
    """Group metric names by all but their last part, the most important first.

    >>> group_by_prefix(["train/norm", "train/loss", "val/accuracy", "val/loss"])
    {'train': ['train/loss', 'train/norm'], 'val': ['val/loss', 'val/accuracy']}
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.rpartition("/")[0], []).append(name)
    return {prefix: sorted(group, key=rank_metric) for prefix, group in groups.items()}


def format_number(value: float) -> str:
    """Format a number with four digits, a large one in full.

    >>> [format_number(value) for value in (0.25, 12.3456, 1234567.8, 1e-7, math.nan)]
    ['0.2500', '12.35', '1,234,568', '1.000e-07', 'nan']
    """
    if 1e3 <= abs(value) < 1e7:
        return f"{value:,.0f}"
    return f"{value:#.4g}"
