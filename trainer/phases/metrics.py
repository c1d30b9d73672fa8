"""What phases measured: named, read by hooks, reduced over the epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from trainer.checks.arguments import describe_value
from trainer.checks.pytrees import format_path
from trainer.checks.suggestions import suggest_and_list, suggest_name
from trainer.state import PyTree

REDUCTIONS: dict[str, Callable[[np.ndarray], Any]] = {
    "mean": lambda traces: np.add.reduce(traces, axis=-1, dtype=np.float64) / traces.shape[-1],
    "sum": lambda traces: np.add.reduce(traces, axis=-1, dtype=np.float64),
    "last": lambda traces: traces[..., -1],
    "max": lambda traces: traces.max(axis=-1),
}
"""How traces `[..., steps]` become an epoch's values `[...]` (in float64, on the host)."""

WEIGHT = ".weight"
"""What ends the name of a metric that says how much each step counts in the mean of another one:
`loss.weight`, of the shape of `loss`, beside it. It is not itself reported."""


def exclude_weights(names: Iterable[str]) -> list[str]:
    """Leave out of names those that are the weights of others.

    >>> exclude_weights(["loss", "loss.weight", "body.weight"])
    ['loss', 'body.weight']
    """
    known = dict.fromkeys(names)
    return [n for n in known if not n.endswith(WEIGHT) or n.removesuffix(WEIGHT) not in known]


def reduce_trace(trace: np.ndarray, weights: np.ndarray | None, reduction: str) -> float:
    """Reduce a trace `[steps]` to the epoch's value; steps of no weight are left out.

    Args:
        trace: one value a step.
        weights: how much each counts in the mean, none below 0; None where all count the same.
        reduction: a key of `REDUCTIONS`.

    >>> reduce_trace(np.array([1.0, 2.0, math.nan]), np.array([1.0, 3.0, 0.0]), "mean")
    1.75
    """
    if weights is None:
        return float(REDUCTIONS[reduction](trace))
    counted = weights > 0
    trace, weights = trace[counted].astype(np.float64), weights[counted].astype(np.float64)
    if not len(trace):
        return math.nan
    if reduction == "mean":
        return float(np.sum(trace * weights) / np.sum(weights))
    return float(REDUCTIONS[reduction](trace))


class Metrics(Mapping[str, float]):
    """What is known at an event: a frozen mapping from a path (`train/loss`) to a float.

    A plain dict serves in its place in a test.

    Args:
        values: name to float.
        steps: name to the trace `[steps]` of the epoch, one value a step.
        output: what the phase before this event handed on, such as a rollout's experience.
        epochs: the total that the run goes to, for whoever shows progress.

    >>> metrics = Metrics({"train/loss": 0.5})
    >>> metrics["train/loss"], dict(metrics.with_scores({"val/loss": 0.7}))
    (0.5, {'train/loss': 0.5, 'val/loss': 0.7})
    """

    __slots__ = ("_values", "epochs", "output", "steps")

    def __init__(
        self,
        values: Mapping[str, float] | None = None,
        *,
        steps: Mapping[str, np.ndarray] | None = None,
        output: PyTree = None,
        epochs: int | None = None,
    ) -> None:
        object.__setattr__(self, "_values", dict(values or {}))
        if not isinstance(steps, MappingProxyType):
            steps = MappingProxyType(dict(steps or {}))
        object.__setattr__(self, "steps", steps)
        object.__setattr__(self, "output", output)
        object.__setattr__(self, "epochs", epochs)

    _values: dict[str, float]
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
        remedy = suggest_name(name, () if name == "_values" else self._values)
        raise AttributeError(f"metrics are read by name, metrics[{name!r}].{remedy}")

    def __getitem__(self, key: str) -> float:
        try:
            return self._values[key]
        except KeyError:
            known = sorted(self._values, key=lambda name: (name.startswith("time/"), name))
            raise KeyError(f"no metric {key!r}{suggest_and_list(key, known)}") from None

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Metrics({self._values})"

    def as_dict(self) -> dict[str, float]:
        """Copy the values to a plain dict, faster than by iterating."""
        return dict(self._values)

    def with_scores(self, scores: Mapping[str, float]) -> Metrics:
        """Merge scores in, as hooks after the one that wrote them see the metrics."""
        values = {**self._values, **scores}
        return Metrics(values, steps=self.steps, output=self.output, epochs=self.epochs)

    def without(self, names: Collection[str]) -> Metrics:
        """Leave values out; the very same metrics come back where there is none of these."""
        if self._values.keys().isdisjoint(names):
            return self
        values = {name: value for name, value in self._values.items() if name not in names}
        return Metrics(values, steps=self.steps, output=self.output, epochs=self.epochs)


def to_arrays(metrics: Any, phase: str) -> Any:
    """Return what a phase reports with Python's numbers as arrays.

    Raises:
        TypeError: a metric is no number, such as a text or None.
    """
    if not isinstance(metrics, Mapping):
        raise TypeError(
            f"phase {phase!r} must report a dict of metrics; got {describe_value(metrics)}"
        )

    def number(path: Any, leaf: Any) -> Any:
        if isinstance(leaf, bool | int | float):
            return jnp.asarray(leaf)
        if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
            raise TypeError(
                f"metric {format_path(path)!r} of phase {phase!r} must be a number or an array of "
                f"them; got {describe_value(leaf)}"
            )
        return leaf

    return jax.tree_util.tree_map_with_path(number, metrics, is_leaf=lambda leaf: leaf is None)


def check_metrics(shapes: PyTree, reduce: Mapping[str, str], phase: str) -> None:
    """Check what a phase reports, before anything is compiled.

    Raises:
        ValueError: a metric is neither `()` nor `[steps]` nor a pair of such, a weight is not of
            the shape of what it weighs, or `reduce` names a metric or a reduction that there is
            not.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        if len(leaf.shape) > 1:
            raise ValueError(
                f"metric {format_path(path)!r} of phase {phase!r} must be a scalar () or a trace "
                f"[steps]; got shape {list(leaf.shape)}"
            )
    names = exclude_weights(shapes)
    for name in shapes.keys() - set(names):
        shape, weighed = (getattr(shapes[n], "shape", None) for n in (name, name[: -len(WEIGHT)]))
        if shape is None or shape != weighed:
            raise ValueError(
                f"metric {name!r} of phase {phase!r} says how much {name[: -len(WEIGHT)]!r} counts "
                f"in the epoch's mean, and must be of its shape, {_form(weighed)}; got "
                f"{_form(shape)}"
            )
    for name, reduction in reduce.items():
        if name not in names:
            raise ValueError(
                f"phase {phase!r} reduces {name!r}, which it does not report"
                f"{suggest_and_list(name, sorted(names))}"
            )
        if reduction not in REDUCTIONS:
            raise ValueError(
                f"phase {phase!r} reduces {name!r} by {reduction!r}, which is no reduction"
                f"{suggest_and_list(reduction, REDUCTIONS)}"
            )


def _form(shape: tuple[int, ...] | None) -> str:
    return "a pair" if shape is None else str(list(shape))


def reduce_pieces(
    pieces: list[dict[str, Any]], reduce: Mapping[str, str], phase: str
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Reduce an epoch's measurements to one float each.

    Args:
        pieces: what each piece of the epoch measured: name to a scalar `()`, a trace `[steps]`, or
            a pair (totals, weights) that is summed and then divided once; beside a scalar or a
            trace may be its weights, see `WEIGHT`.
        reduce: name to a key of `REDUCTIONS`; the mean where it is silent.
        phase: the prefix of the names.

    Returns:
        (values, traces), both with names under the phase's.
    """
    values: dict[str, float] = {}
    traces: dict[str, np.ndarray] = {}
    for name in exclude_weights(pieces[0]):
        path = f"{phase}/{name}"
        if isinstance(pieces[0][name], tuple):
            total = sum(np.sum(piece[name][0], dtype=np.float64) for piece in pieces)
            weight = sum(float(np.sum(piece[name][1])) for piece in pieces)
            values[path] = float(total / weight) if weight else math.nan
            continue
        trace = pieces[0][name]
        if len(pieces) > 1:
            trace = _joined(pieces, name)
        if trace.ndim:
            traces[path] = trace
        else:
            trace = trace[None]
        weights = _joined(pieces, name + WEIGHT) if name + WEIGHT in pieces[0] else None
        values[path] = reduce_trace(trace, weights, reduce.get(name, "mean"))
    return values, traces


def _joined(pieces: list[dict[str, Any]], name: str) -> np.ndarray:
    return np.concatenate([np.atleast_1d(piece[name]) for piece in pieces])
