"""Scores of runs: what was reached, at which epoch, and which is better."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from trainer.checks.modes import ASIDE, Mode
from trainer.commands.lookup.stores import suggestion
from trainer.commands.terminal.calling import CommandError
from trainer.host.escaping import escape_text
from trainer.runs.panels import Curve
from trainer.runs.sparklines import MAIN_METRICS, rank_metric

TRAINING = ("train/", "rollout/", "update/")
"""How the names of what training itself measures begin."""


class CurveSummary(NamedTuple):
    """What a run reached in one metric."""

    last: float
    best: float | None
    """None where it is not known which of two values is better, or there is no number."""
    epoch: int | None
    """Of the best."""


def summarize_curve(curve: Curve, mode: Mode | None) -> CurveSummary:
    """Sum up a curve.

    >>> summarize_curve(Curve([1, 2, 3], [0.5, 0.25, 0.75]), "min")
    CurveSummary(last=0.75, best=0.25, epoch=2)
    """
    course = curve.summary
    best, epoch = course.highest if mode == "max" else course.lowest
    if mode is None or not math.isfinite(best):
        return CurveSummary(course.last, None, None)
    return CurveSummary(course.last, best, epoch)


def find_best(values: Sequence[float | None], mode: Mode | None) -> list[int]:
    """Give the places of the best among values, several where they are equal; none of one alone.

    >>> find_best([0.5, 0.25, None], "min"), find_best([0.5, None], "min"), find_best([1.0, 2.0],
    ...     None)
    ([1], [], [])
    """
    numbers = [value for value in values if value is not None and not math.isnan(value)]
    if mode is None or len(numbers) < 2 or min(numbers) == max(numbers):
        return []
    best = min(numbers) if mode == "min" else max(numbers)
    return [place for place, value in enumerate(values) if value == best]


def choose_key_metrics(names: Iterable[str], count: int) -> list[str]:
    """Choose the metrics that tell most of a run: losses and scores, of validation before training.

    >>> choose_key_metrics(["train/loss", "val/loss", "val/accuracy", "time/epoch_seconds"], 2)
    ['val/loss', 'val/accuracy']
    """
    plain = [name for name in names if not name.startswith((*ASIDE, "gradients/"))]
    order = sorted(plain, key=lambda name: (rank_metric(name), name.startswith(TRAINING), name))
    first = [name for name in order if rank_metric(name) < len(MAIN_METRICS)]
    best_of_each = {name.rpartition("/")[2]: name for name in reversed(first)}
    chosen = [name for name in first if name in best_of_each.values()]
    return [*chosen, *(name for name in order if name not in chosen)][:count]


def check_metric_names(
    names: Sequence[str], metrics: Collection[str], others: Sequence[str] = ()
) -> list[str]:
    """Check that metrics which were asked for are on record.

    Args:
        names: that were asked for.
        metrics: on record.
        others: what else would have done.

    Raises:
        Refused: one is not; those are named that are near.
    """
    there = [*others, *choose_key_metrics(metrics, len(metrics))]
    for name in names:
        if name not in metrics:
            raise CommandError(
                f"no metric '{escape_text(name)}' is on record{suggestion(name, there)}"
            )
    return list(names)


def as_json(curves: Mapping[str, Curve], modes: Mapping[str, Mode | None]) -> dict[str, object]:
    """Give what was reached as JSON has it: name to last, best, epoch and mode."""
    return {
        name: {**summarize_curve(curve, modes[name])._asdict(), "mode": modes[name]}
        for name, curve in curves.items()
    }
