"""Courses: how a metric went over the epochs, in a few numbers and a small curve."""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Sequence

KEPT = 64
"""Points of a course, at most: beyond, two neighbours become one."""

BLOCKS = "▁▂▃▄▅▆▇█"

MAIN_METRICS = ("loss", "accuracy", "return", "reward", "perplexity")
"""Metrics that come first, by the last part of their names, and have curves in the bar."""


@dataclasses.dataclass
class MetricSummary:
    """How a metric went: its values, and the epochs of the lowest and the highest.

    >>> course = MetricSummary()
    >>> for epoch, loss in enumerate([4.0, 2.0, 1.0, 3.0], 1):
    ...     course.add(loss, epoch)
    >>> course.last, course.lowest, course.highest, course.curve(4)
    (3.0, (1.0, 3), (4.0, 1), '█▃▁▆')
    """

    last: float = math.nan
    lowest: tuple[float, int] = (math.inf, 0)
    highest: tuple[float, int] = (-math.inf, 0)
    points: list[float] = dataclasses.field(default_factory=list)
    """Means of `stride` values each; replaced where it shortens, since a thread shows it."""
    stride: int = 1
    waiting: list[float] = dataclasses.field(default_factory=list)
    """Values that do not make a point yet."""

    def add(self, value: float, epoch: int) -> None:
        """Go on to this value. One that is not a number is neither lowest nor highest."""
        self.last = value
        if value < self.lowest[0]:
            self.lowest = value, epoch
        if value > self.highest[0]:
            self.highest = value, epoch
        self.waiting.append(value)
        if len(self.waiting) == self.stride:
            self.points.append(mean(self.waiting))
            self.waiting = []
        if len(self.points) == KEPT:
            self.points = [mean(self.points[at : at + 2]) for at in range(0, KEPT, 2)]
            self.stride *= 2

    def curve(self, width: int) -> str:
        """Draw its points in so many characters, or fewer where there are fewer points."""
        return sparkline([*self.points, *([mean(self.waiting)] if self.waiting else [])], width)


def sparkline(values: Sequence[float], width: int) -> str:
    """Draw numbers from the lowest to the highest; what is not finite leaves a gap.

    >>> sparkline([0.0, 1.0, math.nan, 3.0], 8), sparkline([2.0, 2.0], 8), sparkline(range(100), 4)
    ('▁▃ █', '▁▁', '▁▃▆█')
    """
    columns = min(width, len(values))
    edges = [place * len(values) // columns for place in range(columns + 1)] if columns else []
    heights = [mean(values[a:b]) for a, b in itertools.pairwise(edges)]
    finite = [height for height in heights if math.isfinite(height)]
    low, span = (min(finite), max(finite) - min(finite)) if finite else (0.0, 0.0)
    scale = (len(BLOCKS) - 1) / span if 0 < span < math.inf else 0.0
    return "".join(
        BLOCKS[round((height - low) * scale)] if math.isfinite(height) else " "
        for height in heights
    )


def mean(values: Sequence[float]) -> float:
    """Average the finite ones; nan if there is none."""
    finite = [value for value in values if math.isfinite(value)]
    return statistics.fmean(finite) if finite else math.nan


def rank(name: str) -> int:
    """Order metrics: first what is optimised and reached."""
    leaf = name.rpartition("/")[2]
    return MAIN_METRICS.index(leaf) if leaf in MAIN_METRICS else len(MAIN_METRICS)


def format_number(value: float) -> str:
    """Write a number with four digits, a large one in full.

    >>> [format_number(value) for value in (0.25, 12.3456, 1234567.8, 1e-7, math.nan)]
    ['0.2500', '12.35', '1,234,568', '1.000e-07', 'nan']
    """
    if 1e3 <= abs(value) < 1e7:
        return f"{value:,.0f}"
    return f"{value:#.4g}"
