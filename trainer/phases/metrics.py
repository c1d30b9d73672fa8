"""Metrics as hooks read them: a frozen mapping of floats; a population has values per member."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NoReturn

import numpy as np

from trainer.checks.suggestions import suggest_and_list, suggest_name
from trainer.state import PyTree


class Metrics(Mapping[str, float]):
    """The metrics at an event: a frozen mapping from a path (`train/loss`) to a float.

    In a test a plain dict will do.

    Args:
        values: floats by name.
        steps: traces `[steps]` of the epoch by name, one value per step.
        output: of the phase before this event, such as the experience of a rollout.
        epochs: the total number of epochs of the run, to show progress.
        late: reads the values that are None, once one of them is needed.

    >>> metrics = Metrics({"train/loss": 0.5})
    >>> metrics["train/loss"], dict(metrics.with_scores({"val/loss": 0.7}))
    (0.5, {'train/loss': 0.5, 'val/loss': 0.7})
    """

    __slots__ = ("_late", "_values", "epochs", "output", "steps")

    def __init__(
        self,
        values: Mapping[str, Any] | None = None,
        *,
        steps: Mapping[str, np.ndarray] | None = None,
        output: PyTree = None,
        epochs: int | None = None,
        late: Callable[[], Mapping[str, float]] | None = None,
    ) -> None:
        object.__setattr__(self, "_values", dict(values or {}))
        object.__setattr__(self, "_late", late)
        if not isinstance(steps, MappingProxyType):
            steps = MappingProxyType(dict(steps or {}))
        object.__setattr__(self, "steps", steps)
        object.__setattr__(self, "output", output)
        object.__setattr__(self, "epochs", epochs)

    _values: dict[str, Any]
    _late: Callable[[], Mapping[str, float]] | None
    steps: Mapping[str, np.ndarray]
    output: PyTree
    epochs: int | None

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"metrics are frozen; write scores to the state instead of {name!r}")

    def __setitem__(self, name: str, value: object) -> NoReturn:
        raise TypeError(
            f"metrics are frozen; for hooks after this one to see {name!r}, return "
            f"state.replace(scores={{**state.scores, {name!r}: ...}})"
        )

    def __getattr__(self, name: str) -> NoReturn:
        if name in ("update", "pop", "setdefault"):
            raise AttributeError(f"metrics are frozen, {name} too; see state.replace(scores=...)")
        remedy = suggest_name(name, () if name.startswith("_") else self._values)
        raise AttributeError(f"metrics are read by name, metrics[{name!r}].{remedy}")

    def __getitem__(self, key: str) -> float:
        try:
            value = self._values[key]
            return self.as_dict()[key] if value is None else value
        except KeyError:
            known = sorted(self._values, key=lambda name: (name.startswith("time/"), name))
            raise KeyError(
                f"no metric {key!r}{suggest_and_list(key, known)}; a hook that writes it must "
                "stand before the one that reads it"
            ) from None

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Metrics({self._values})"

    def as_dict(self) -> dict[str, float]:
        """Copy the values to a plain dict, faster than by iteration; late ones are read."""
        if self._late is not None:
            read = self._late()
            values = {n: read[n] if value is None else value for n, value in self._values.items()}
            object.__setattr__(self, "_values", values)
            object.__setattr__(self, "_late", None)
        return dict(self._values)

    def with_scores(self, scores: Mapping[str, float]) -> Metrics:
        """Return metrics with scores merged in, as later hooks see them."""
        return self._replace({**self._values, **scores})

    def with_output(self, output: PyTree) -> Metrics:
        """Return metrics with another output of the phase before."""
        return self._replace(self._values, output=output)

    def with_late(self, names: Collection[str], read: Callable[[], Mapping[str, float]]) -> Metrics:
        """Return metrics in which some values are those of `read()`, called when one is needed.

        >>> metrics = Metrics({"loss": 0.5, "time": 1.0}).with_late(["time"], lambda: {"time": 2.0})
        >>> metrics
        Metrics({'loss': 0.5, 'time': None})
        >>> metrics["time"]
        2.0
        """
        return self._replace({**self._values, **dict.fromkeys(names)}, late=read)

    def without(self, names: Collection[str]) -> Metrics:
        """Return metrics without some values; the same object if it has none of them."""
        if self._values.keys().isdisjoint(names):
            return self
        return self._replace({n: value for n, value in self._values.items() if n not in names})

    def _replace(self, values: Mapping[str, Any], **others: Any) -> Metrics:
        kept = {name: getattr(self, name) for name in ("steps", "output", "epochs")}
        return Metrics(values, **{**kept, "late": self._late, **others})


class Members(float):
    """A metric of a population: the mean over its live members, with the value of each.

    It is a float; arithmetic with it returns plain floats. If no member is live, all of them count.

    >>> scores = Members([1.0, 5.0, 3.0], live=[True, False, True])
    >>> float(scores), scores.values.tolist()
    (2.0, [1.0, 5.0, 3.0])
    """

    values: np.ndarray
    """float64 `[members]`; nan where a member has none."""
    live: np.ndarray
    """bool `[members]`: which members were live when it was measured."""
    present: np.ndarray
    """bool `[members]`: which members have a value; nan is a value."""

    def __new__(
        cls,
        values: np.ndarray | Sequence[float],
        live: np.ndarray | Sequence[bool],
        present: np.ndarray | Sequence[bool] | None = None,
    ) -> Members:
        """Build the mean from the values, the live members, and those with a value (None: all)."""
        values, live = np.asarray(values, np.float64), np.asarray(live, bool)
        has = np.ones(len(values), bool) if present is None else np.asarray(present, bool)
        counted = values[has & live] if (has & live).any() else values[has]
        made = super().__new__(cls, counted.sum() / len(counted) if len(counted) else math.nan)
        values = np.where(has, values, math.nan)
        made.values, made.live, made.present = map(_read_only, (values, live, has))
        return made

    def __reduce__(self) -> Any:
        return Members, (self.values, self.live, self.present)


def compute_members(
    compute: Callable[[int], Mapping[str, float]], live: np.ndarray
) -> dict[str, float]:
    """Compute values of each member, by its number; each name of the result is a `Members`.

    A member that is not live, and for which it fails, has no values: it may have been stopped for
    the same reason. A name that only some members have is not present for the others.

    >>> found = compute_members(lambda member: {"cost": 6 / member}, np.array([False, True]))
    >>> float(found["cost"]), found["cost"].present.tolist()
    (6.0, [False, True])
    """
    found: list[Mapping[str, float]] = []
    for member, alive in enumerate(live):
        try:
            found.append(compute(member))
        except Exception as error:
            if alive:
                error.add_note(f"of member {member} of the population")
                raise
            found.append({})
    return {
        path: Members(
            [one.get(path, math.nan) for one in found], live, [path in one for one in found]
        )
        for path in dict.fromkeys(path for one in found for path in one)
    }


class Traces(np.ndarray):
    """A metric per step: the mean `[steps]` over live members, with the trace of each member."""

    values: np.ndarray
    """`[members, steps]`."""


def _read_only(array: np.ndarray) -> np.ndarray:
    """Return a read-only view, to pass to hooks."""
    view = array.view()
    view.flags.writeable = False
    return view
