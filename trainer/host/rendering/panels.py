"""The metrics of a run as curves, grouped into panels, and the times of hooks."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

from trainer.host.rendering.sparklines import MetricSummary, rank_metric

Color = TypeVar("Color")

ASIDE = ("time/", "system/", "steps/")
"""Prefixes of metrics that are not plotted unless asked for."""

CONFUSION = re.compile(r"(?:^|/)confusion/(\d+)/(\d+)$")
"""End of the names of a confusion matrix's cells: class, predicted class. They are no curves."""

HOOK_PREFIX = "time/hook/"
"""Beginning of the names of hooks' times."""


@dataclasses.dataclass
class Curve:
    """A metric over a run."""

    epochs: list[float] = dataclasses.field(default_factory=list)
    """Of its values; steps if the records name no epochs."""
    values: list[float] = dataclasses.field(default_factory=list)
    """Nan for a value that was not finite."""

    def add(self, epoch: float, value: float) -> None:
        """Append a value, or replace the last one if it is of the same epoch."""
        if self.epochs and self.epochs[-1] == epoch:
            self.values[-1] = value
        else:
            self.epochs.append(epoch)
            self.values.append(value)

    @property
    def summary(self) -> MetricSummary:
        """The last value, the lowest and the highest, and their epochs."""
        summary = MetricSummary()
        for epoch, value in zip(self.epochs, self.values, strict=True):
            summary.add(value, int(epoch))
        return summary


def finite_values(curve: Curve) -> list[float]:
    """Return the values of a curve that are finite."""
    return [value for value in curve.values if math.isfinite(value)]


def sum_epoch_seconds(curves: Mapping[str, Curve]) -> float:
    """Return the time of all epochs' phases; 0 if none was recorded."""
    return sum(finite_values(curves.get("time/epoch_seconds", Curve())))


class HookTime(NamedTuple):
    """The time that a hook took."""

    name: str
    seconds: float
    """Total."""
    each: float
    """Mean seconds an epoch."""
    share: float
    """Fraction of the time of phases and hooks together."""


def hook_times(curves: Mapping[str, Curve]) -> list[HookTime]:
    """Sum up each hook's times, the slowest first; hooks that took no time are left out.

    The times of an event are in the next epoch's record, those of the last event in none.

    >>> hook_times({"time/epoch_seconds": Curve([1], [3.0]), "time/hook/save": Curve([1], [1.0])})
    [HookTime(name='save', seconds=1.0, each=1.0, share=0.25)]
    """
    totals = {
        name.removeprefix(HOOK_PREFIX): finite_values(curve)
        for name, curve in curves.items()
        if name.startswith(HOOK_PREFIX) and any(finite_values(curve))
    }
    whole = sum(map(sum, totals.values())) + sum_epoch_seconds(curves)
    return [
        HookTime(name, sum(times), sum(times) / len(times), sum(times) / whole)
        for name, times in sorted(totals.items(), key=lambda item: -sum(item[1]))
    ]


def group_panels(
    curves: Mapping[str, Curve], metrics: Sequence[str] | None = None
) -> dict[str, dict[str, Curve]]:
    """Group curves by panel and by name in the panel, the most important panel first.

    Training and validation of one metric share a panel. None for `metrics` selects all but times,
    the machine's, and the cells of confusion matrices.

    >>> curves = dict.fromkeys(["train/norm", "train/loss", "val/loss", "time/s"], Curve())
    >>> {panel: list(found) for panel, found in group_panels(curves).items()}
    {'loss': ['train', 'val'], 'norm': ['train']}
    """
    if metrics is None:
        metrics = [n for n in curves if not n.startswith(ASIDE) and not CONFUSION.search(n)]
    found: dict[str, dict[str, Curve]] = {}
    known = [name for name in metrics if name in curves]
    for name in sorted(known, key=lambda name: (name.startswith("gradients/"), rank_metric(name))):
        panel, label = split_metric_name(name)
        found.setdefault(panel, {})[label] = curves[name]
    return found


def assign_colors(
    panels: Mapping[str, Mapping[str, Curve]], colors: Sequence[Color]
) -> dict[str, Color]:
    """Assign each name in panels a color, the same in every panel.

    >>> assign_colors({"loss": {"train": Curve(), "val": Curve()}, "norm": {"val": Curve()}}, "ab")
    {'train': 'a', 'val': 'b'}
    """
    names = dict.fromkeys(name for curves in panels.values() for name in curves)
    return {name: colors[number % len(colors)] for number, name in enumerate(names)}


def split_metric_name(name: str) -> tuple[str, str]:
    """Return the panel of a metric, and its name in the panel.

    >>> (split_metric_name("val/loss"), split_metric_name("gradients/norm/hidden/0"),
    ...  split_metric_name("size"))
    (('loss', 'val'), ('gradients/norm', 'hidden/0'), ('size', ''))
    """
    first, _, rest = name.partition("/")
    if first == "gradients" and "/" in rest:
        kind, _, layer = rest.partition("/")
        return f"{first}/{kind}", layer
    return (rest, first) if rest else (name, "")


def choose_ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Choose round numbers from low to high: three to six, unless low equals high.

    >>> choose_ticks(0.0, 1.0), choose_ticks(1, 20, whole=True), choose_ticks(3, 3)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [5, 10, 15, 20], [3])
    """
    if not high > low:
        return [low]
    rough = (high - low) / 5
    if not 1e-300 < rough < math.inf:  # too close, or too far apart, for floating-point numbers
        return [low, high]
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * m for m in (1, 2, 5, 10) if size * m >= rough * 0.999)
    if whole:
        step = max(round(step), 1)
    places = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    digits = max(-math.floor(math.log10(step)), 0)
    return [round(place * step, digits) for place in places]
