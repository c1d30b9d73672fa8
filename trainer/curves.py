"""Curves: metrics over a run, which of them belong together, and the numbers beside them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from trainer.courses import Course, rank

ASIDE = ("time/", "system/", "steps/")
"""What is not shown as a curve unless it is asked for."""


@dataclasses.dataclass
class Curve:
    """A metric over a run."""

    epochs: list[float] = dataclasses.field(default_factory=list)
    """Of its values; steps where the records name no epochs."""
    values: list[float] = dataclasses.field(default_factory=list)
    """Nan where it was not finite."""

    @property
    def course(self) -> Course:
        """The last value, the lowest and the highest, and their epochs."""
        course = Course()
        for epoch, value in zip(self.epochs, self.values, strict=True):
            course.add(value, int(epoch))
        return course


def finite(curve: Curve) -> list[float]:
    """Leave out of its values what is not finite."""
    return [value for value in curve.values if math.isfinite(value)]


def panels(
    curves: Mapping[str, Curve], metrics: Sequence[str] | None = None
) -> dict[str, dict[str, Curve]]:
    """Sort curves into panels: those of one name, of training and validation, into one.

    Args:
        curves: of all metrics.
        metrics: those to show; all but times and the machine's where None.

    Returns:
        Panel to name in it to curve, the most telling first.

    >>> curves = dict.fromkeys(["train/norm", "train/loss", "val/loss", "time/s"], Curve())
    >>> {panel: list(found) for panel, found in panels(curves).items()}
    {'loss': ['train', 'val'], 'norm': ['train']}
    """
    if metrics is None:
        metrics = [name for name in curves if not name.startswith(ASIDE)]
    found: dict[str, dict[str, Curve]] = {}
    for name in sorted((name for name in metrics if name in curves), key=_panel_rank):
        panel, label = placed(name)
        found.setdefault(panel, {})[label] = curves[name]
    return found


def placed(name: str) -> tuple[str, str]:
    """Give (panel, name in it) of a metric.

    >>> placed("val/loss"), placed("gradients/norm/hidden/0"), placed("size")
    (('loss', 'val'), ('gradients/norm', 'hidden/0'), ('size', ''))
    """
    first, _, rest = name.partition("/")
    if first == "gradients" and "/" in rest:
        kind, _, layer = rest.partition("/")
        return f"{first}/{kind}", layer
    return (rest, first) if rest else (name, "")


def _panel_rank(name: str) -> tuple[bool, int]:
    return name.startswith("gradients/"), rank(name)


def ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Choose round numbers from low to high, three to six of them where they differ.

    >>> ticks(0.0, 1.0), ticks(1, 20, whole=True), ticks(3, 3)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [5, 10, 15, 20], [3])
    """
    if not high > low:
        return [low]
    rough = (high - low) / 5
    if not 1e-300 < rough < math.inf:  # closer, or further apart, than numbers can tell
        return [low, high]
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * m for m in (1, 2, 5, 10) if size * m >= rough * 0.999)
    if whole:
        step = max(round(step), 1)
    places = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    digits = max(-math.floor(math.log10(step)), 0)
    return [round(place * step, digits) for place in places]
