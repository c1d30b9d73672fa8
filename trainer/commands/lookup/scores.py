"""Scores of runs: the best value, its epoch, and which run is better."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from trainer.checks.modes import Mode, infer_mode
from trainer.commands.lookup.stores import suggest
from trainer.commands.terminal.calling import CommandError
from trainer.commands.terminal.output import BEST
from trainer.host.escaping import escape_text
from trainer.host.rendering.panels import ASIDE, Curve
from trainer.host.rendering.rich_tables import Column, safe_text
from trainer.host.rendering.sparklines import MAIN_METRICS, format_number, rank_metric

TRAINING = ("train/", "rollout/", "update/")
"""Prefixes of metrics that training itself measures."""

SCORES = 4
"""Scores of a checkpoint or an evaluation to show."""


class CurveSummary(NamedTuple):
    """The last and best values of a metric in a run."""

    last: float
    best: float | None
    """None if it is unknown which of two values is better, or there is no number."""
    epoch: int | None
    """Epoch of the best value."""


def summarize_curve(curve: Curve, mode: Mode | None) -> CurveSummary:
    """Summarize a curve.

    >>> summarize_curve(Curve([1, 2, 3], [0.5, 0.25, 0.75]), "min")
    CurveSummary(last=0.75, best=0.25, epoch=2)
    """
    found = curve.summary
    best, epoch = found.highest if mode == "max" else found.lowest
    if mode is None or not math.isfinite(best):
        return CurveSummary(found.last, None, None)
    return CurveSummary(found.last, best, epoch)


def find_best(values: Sequence[float | None], mode: Mode | None) -> list[int]:
    """Return the places of the best values: several if equal, none if there is nothing to compare.

    >>> find_best([0.5, 0.25, None], "min"), find_best([0.5, None], "min"), find_best([1.0, 2.0],
    ...     None)
    ([1], [], [])
    """
    numbers = [value for value in values if value is not None and not math.isnan(value)]
    if mode is None or len(numbers) < 2 or min(numbers) == max(numbers):
        return []
    best = min(numbers) if mode == "min" else max(numbers)
    return [place for place, value in enumerate(values) if value == best]


def make_score_columns(
    scores: Sequence[Mapping[str, float]], names: Sequence[str], *, mark_best: bool = True
) -> list[Column]:
    """Make a column per score, with its best value marked; a row has scores by name."""
    columns = []
    for place, name in enumerate(names):
        values = [row.get(name) for row in scores]
        best = find_best(values, infer_mode(name) if mark_best else None)
        cells = [
            safe_text("" if value is None else format_number(value), BEST if row in best else "")
            for row, value in enumerate(values)
        ]
        columns.append(Column(name, cells, "right", 6 - place))
    return columns


def choose_key_metrics(names: Iterable[str], count: int) -> list[str]:
    """Choose the most important metrics: losses and scores, validation before training.

    >>> choose_key_metrics(["train/loss", "val/loss", "val/accuracy", "time/epoch_seconds"], 2)
    ['val/loss', 'val/accuracy']
    """
    plain = [name for name in names if not name.startswith((*ASIDE, "gradients/"))]
    order = sorted(plain, key=lambda name: (rank_metric(name), name.startswith(TRAINING), name))
    main = [name for name in order if rank_metric(name) < len(MAIN_METRICS)]
    first_of_kind = {name.rpartition("/")[2]: name for name in reversed(main)}
    chosen = [name for name in main if name in first_of_kind.values()]
    return [*chosen, *(name for name in order if name not in chosen)][:count]


def check_metric_names(
    names: Sequence[str], metrics: Collection[str], others: Sequence[str] = ()
) -> list[str]:
    """Check that the requested names are of recorded metrics.

    Raises:
        CommandError: one is not; the message suggests similar names, also of `others`.
    """
    known = [*others, *choose_key_metrics(metrics, len(metrics))]
    for name in names:
        if name not in metrics:
            raise CommandError(
                f"no metric '{escape_text(name)}' was recorded{suggest(name, known)}"
            )
    return list(names)


def require_mode(metric: str, mode: Mode | None) -> Mode:
    """Return which of two values of a metric is better, if given or inferred from its name.

    Raises:
        CommandError: neither.
    """
    if (found := mode or infer_mode(metric)) is None:
        raise CommandError(
            f"whether a smaller or a larger {escape_text(metric)} is better, its name does not "
            "tell: give --mode min or --mode max"
        )
    return found
