"""What the phases of a population measured: a value of each member, and the mean over them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from trainer.phases.metrics import REDUCTIONS, WEIGHT, exclude_weights, reduce_trace

LIVE = "live"
"""In the carry of a population: bool `[members]`; one that does not live does not move."""


class Members(float):
    """A metric of a population: the mean over its live members, with the value of each.

    It serves wherever a float does; arithmetic with it gives plain floats. Members that do not live
    count where none does.

    >>> scores = Members([1.0, 5.0, 3.0], live=[True, False, True])
    >>> float(scores), scores.values.tolist()
    (2.0, [1.0, 5.0, 3.0])
    """

    values: np.ndarray
    """float64 `[members]`; nan where a member has none."""
    live: np.ndarray
    """bool `[members]`: which of them lived when it was measured."""
    present: np.ndarray
    """bool `[members]`: which of them have a value, be it nan."""

    def __new__(
        cls,
        values: np.ndarray | Sequence[float],
        live: np.ndarray | Sequence[bool],
        present: np.ndarray | Sequence[bool] | None = None,
    ) -> Members:
        """Take the values, which members live, and which have one: all if None."""
        values, live = np.asarray(values, np.float64), np.asarray(live, bool)
        has = np.ones(len(values), bool) if present is None else np.asarray(present, bool)
        counted = values[has & live] if (has & live).any() else values[has]
        made = super().__new__(cls, counted.sum() / len(counted) if len(counted) else math.nan)
        values = np.where(has, values, math.nan)
        made.values, made.live, made.present = map(_read_only, (values, live, has))
        return made

    def __reduce__(self) -> Any:
        return Members, (self.values, self.live, self.present)


class Traces(np.ndarray):
    """What each step measured: the mean `[steps]` over live members, and the traces of each."""

    values: np.ndarray
    """`[members, steps]`."""


def _read_only(array: np.ndarray) -> np.ndarray:
    """Return a view that nobody can write to: hooks are given it."""
    view = array.view()
    view.flags.writeable = False
    return view


def reduce_members(
    pieces: Sequence[Mapping[str, Any]], live: np.ndarray, reduce: Mapping[str, str], phase: str
) -> tuple[dict[str, Members], dict[str, np.ndarray]]:
    """Reduce an epoch's measurements to one float a member, as `reduced` does of one run.

    Args:
        pieces: what each piece of the epoch measured: name to `[members]`, to traces
            `[members, steps]`, or to a pair (totals, weights) of either; weights as for one run.
        live: bool `[members]`.
        reduce: name to a key of `REDUCTIONS`; the mean where it is silent.
        phase: the prefix of the names.

    Returns:
        (values, traces), both with names under the phase's.
    """
    values: dict[str, Members] = {}
    traces: dict[str, np.ndarray] = {}
    count = len(live)
    for name in exclude_weights(pieces[0]):
        path = f"{phase}/{name}"
        if isinstance(pieces[0][name], tuple):
            total, weight = (
                sum(
                    piece[name][part].reshape(count, -1).sum(axis=1, dtype=np.float64)
                    for piece in pieces
                )
                for part in (0, 1)
            )
            mean = np.full(count, math.nan)
            np.divide(total, weight, out=mean, where=np.asarray(weight) != 0)
            values[path] = Members(mean, live)
            continue
        trace = _joined(pieces, name, count)
        if len(pieces) > 1 or pieces[0][name].ndim > 1:
            traces[path] = _traces(trace, live)
        reduction = reduce.get(name, "mean")
        if name + WEIGHT in pieces[0]:
            rows = zip(trace, _joined(pieces, name + WEIGHT, count), strict=True)
            each = np.array([reduce_trace(one, weights, reduction) for one, weights in rows])
        else:
            each = REDUCTIONS[reduction](trace)
        values[path] = Members(each, live)
    return values, traces


def _joined(pieces: Sequence[Mapping[str, Any]], name: str, count: int) -> np.ndarray:
    """Join the pieces' traces to `[members, steps]`."""
    steps = [piece[name].reshape(count, -1) for piece in pieces]
    return steps[0] if len(steps) == 1 else np.concatenate(steps, axis=1)


def _traces(values: np.ndarray, live: np.ndarray) -> Traces:
    chosen = values[live] if live.any() else values
    mean = (chosen.sum(axis=0, dtype=np.float64) / len(chosen)).view(Traces)
    mean.values = values
    return mean


def finalize_members(
    finalize: Callable[[Mapping[str, float]], Mapping[str, float | None]],
    values: Mapping[str, Members],
    live: np.ndarray,
    phase: str,
) -> dict[str, Members]:
    """Add what follows from the values of each member; names have the prefix.

    A name that `finalize` leaves out for some is not present there; for all, it is not in the
    result. Where it fails for a member that does not live, that member has no values: it may have
    been stopped for the very reason.

    Args:
        finalize: of the phase, for one run.
        values: to derive from.
        live: bool `[members]`.
        phase: the prefix.
    """
    names = [name.removeprefix(f"{phase}/") for name in values]
    columns = np.array([value.values for value in values.values()]).reshape(-1, len(live))
    found: list[Mapping[str, float | None]] = []
    for number, row in enumerate(columns.T.tolist()):
        try:
            found.append(finalize(dict(zip(names, row, strict=True))))
        except Exception as error:
            if live[number]:
                error.add_note(f"of member {number} of the population")
                raise
            found.append(dict.fromkeys(names))
    after: dict[str, Members] = dict(values)
    for name in dict.fromkeys(name for one in found for name in one):
        path = f"{phase}/{name}"
        old = values[path].values if path in values else [None] * len(found)
        given = [one.get(name, value) for one, value in zip(found, old, strict=True)]
        present = [value is not None for value in given]
        if any(present):
            numbers = [math.nan if value is None else float(value) for value in given]
            after[path] = Members(numbers, live, present)
        else:
            after.pop(path, None)
    return after
