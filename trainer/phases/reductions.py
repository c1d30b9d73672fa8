"""Reduction of an epoch's measurements to metrics, of one run or of each member of a population."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trainer.checks.arguments import describe_value
from trainer.checks.pytrees import format_path
from trainer.checks.suggestions import suggest_and_list
from trainer.phases.host_metrics.collected import COLLECTED
from trainer.phases.metrics import Members, Traces, compute_members
from trainer.state import PyTree

Finalize = Callable[[Mapping[str, float]], Mapping[str, float | None]]
"""`(means) -> {name: value}` on the host: derived from an epoch's means; None removes a value."""

REDUCTIONS: dict[str, Callable[[np.ndarray], Any]] = {
    "mean": lambda traces: np.add.reduce(traces, axis=-1, dtype=np.float64) / traces.shape[-1],
    "sum": lambda traces: np.add.reduce(traces, axis=-1, dtype=np.float64),
    "first": lambda traces: traces[..., 0],
    "last": lambda traces: traces[..., -1],
    "max": lambda traces: traces.max(axis=-1),
}
"""How traces `[..., steps]` become an epoch's values `[...]` (in float64, on the host)."""

WEIGHT = ".weight"
"""Suffix of the metric that holds the weight of each step in the mean of another metric:
`loss.weight`, of the shape of `loss`, beside it. It is not reported itself."""


def exclude_weights(names: Iterable[str]) -> list[str]:
    """Return the names without those that are weights of others, or of what is collected.

    >>> exclude_weights(["loss", "loss.weight", "body.weight"])
    ['loss', 'body.weight']
    """
    known = dict.fromkeys(name for name in names if name != COLLECTED)
    return [n for n in known if not n.endswith(WEIGHT) or n.removesuffix(WEIGHT) not in known]


def reduce_trace(trace: np.ndarray, weights: np.ndarray | None, reduction: str) -> float:
    """Reduce a trace `[steps]` to the epoch's value; steps without weight are left out.

    No weight is below 0; None if all steps count the same.

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


def to_arrays(metrics: Any, phase: str) -> Any:
    """Return the metrics of a phase, with Python numbers converted to arrays.

    Raises:
        TypeError: a metric is not a number, such as a text or None.
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
    """Check the metrics of a phase, before anything is compiled.

    Raises:
        ValueError: a metric is neither `()` nor `[steps]` nor a pair of such, a weight has another
            shape than its metric, or `reduce` names an unknown metric or reduction.
    """
    shapes = {name: shape for name, shape in shapes.items() if name != COLLECTED}
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
    pieces: Sequence[Mapping[str, Any]],
    reduce: Mapping[str, str],
    phase: str,
    live: np.ndarray | None = None,
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Reduce an epoch's measurements to one float each, a `Members` for a population.

    A piece of the epoch maps a name to a scalar `()`, a trace `[steps]`, or a pair (totals,
    weights) that is summed and then divided once; beside a scalar or a trace may be its weights,
    see `WEIGHT`. Of a population each has a leading axis `[members]`; `live` is bool `[members]`.
    Names that `reduce` lacks take the mean.

    Returns:
        (values, traces), both with names under the phase's.
    """
    values: dict[str, float] = {}
    traces: dict[str, np.ndarray] = {}
    lead = () if live is None else (len(live),)

    def join(name: str) -> np.ndarray:
        """Join the pieces' traces to `[steps]`, or `[members, steps]`."""
        steps = [piece[name].reshape(*lead, -1) for piece in pieces]
        return steps[0] if len(steps) == 1 else np.concatenate(steps, axis=-1)

    for name in exclude_weights(pieces[0]):
        path, first = f"{phase}/{name}", pieces[0][name]
        means: Any
        if isinstance(first, tuple):
            total, weight = (
                sum(p[name][part].reshape(*lead, -1).sum(-1, dtype=np.float64) for p in pieces)
                for part in (0, 1)
            )
            if live is None:
                means = total / weight if weight else math.nan
            else:
                means = np.full(lead, math.nan)
                np.divide(total, weight, out=means, where=np.asarray(weight) != 0)
        elif (
            live is None and len(pieces) == 1 and not first.ndim and name + WEIGHT not in pieces[0]
        ):
            means = first  # by whatever reduction; the rest costs 2 us a metric
        else:
            trace, reduction = join(name), reduce.get(name, "mean")
            if len(pieces) > 1 or first.ndim > len(lead):
                traces[path] = trace if live is None else _average_live(trace, live)
            if name + WEIGHT not in pieces[0]:
                means = REDUCTIONS[reduction](trace)
            elif live is None:
                means = reduce_trace(trace, join(name + WEIGHT), reduction)
            else:
                rows = zip(trace, join(name + WEIGHT), strict=True)
                means = [reduce_trace(one, weights, reduction) for one, weights in rows]
        values[path] = float(means) if live is None else Members(means, live)
    return values, traces


def _average_live(values: np.ndarray, live: np.ndarray) -> Traces:
    chosen = values[live] if live.any() else values
    mean = (chosen.sum(axis=0, dtype=np.float64) / len(chosen)).view(Traces)
    mean.values = values
    return mean


def finalize_values(
    finalize: Finalize | None, values: Mapping[str, float], phase: str
) -> dict[str, float]:
    """Add the values that `finalize` derives from an epoch's; names have the prefix."""
    if finalize is None:
        return dict(values)
    means = {name.removeprefix(f"{phase}/"): value for name, value in values.items()}
    found = {f"{phase}/{name}": value for name, value in finalize(means).items()}
    kept = {name: value for name, value in values.items() if found.get(name, 0.0) is not None}
    return kept | {name: float(value) for name, value in found.items() if value is not None}


def finalize_members(
    finalize: Finalize, values: Mapping[str, Any], live: np.ndarray, phase: str
) -> dict[str, float]:
    """Add the values that `finalize` derives for each member; names have the prefix.

    A name that it removes for some members is not present there; for all, it is not in the result.
    If it fails for a member that is not live, that member has no values: it may have been stopped
    for the same reason. Each of the values is a `Members`.
    """
    columns = np.array([value.values for value in values.values()]).reshape(-1, len(live))
    rows = columns.T.tolist()

    def finalize_member(member: int) -> dict[str, float]:
        return finalize_values(finalize, dict(zip(values, rows[member], strict=True)), phase)

    return compute_members(finalize_member, live)
