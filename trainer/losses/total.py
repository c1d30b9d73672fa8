"""Several losses as one, each with a coefficient that may follow a schedule."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from trainer.losses.contract import Loss, attribute, loss_at

Coefficient = float | Callable[[Any], Any]
"""A number, or a schedule `(step) -> ()` as optax's are."""


class Term(NamedTuple):
    """One of the losses."""

    name: str
    loss: Loss
    coefficient: Coefficient


def total(*terms: Loss | tuple[Loss, Coefficient]) -> Loss:
    """Add losses up, each times its coefficient.

    It reports `loss`, the sum; of each term `<name>_loss`, and all else that it reports, under the
    names that it has there; `<name>_coefficient` where that follows a schedule. The name is that of
    the function. Where the values of some term come with weights, each term is brought to its own
    weighted mean over the batch.

    A schedule is asked for the optimizer's step, so that a run that goes on follows it: the loss
    then has the attribute `at`, `(step) -> loss`, by which `supervised` and `rl.update` ask.

    Args:
        terms: losses, or pairs (loss, coefficient). Without a coefficient it is 1.

    Raises:
        TypeError: a term is no loss, or its coefficient neither a number nor a schedule.
        ValueError: there is no term, a coefficient is negative or not finite, or two terms have one
            name or report the same.

    >>> from trainer import losses
    >>> def small(outputs, batch):
    ...     return {"loss": outputs[:, 0] ** 2}
    >>> both = total(losses.regression, (small, 0.5))
    >>> values = both(jnp.array([[2.0]]), {"targets": jnp.array([1.0])})
    >>> {name: float(value[0]) for name, value in sorted(values.items())}  # 1 + 0.5 * 4
    {'absolute_error': 1.0, 'loss': 3.0, 'regression_loss': 1.0, 'small_loss': 4.0}
    """
    parts = [_term(term) for term in terms]
    if not parts:
        raise ValueError("total needs at least one loss, such as total(losses.regression)")
    names = [part.name for part in parts]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"total tells losses apart by their functions' names; got {twice} twice")

    def at(step: Any) -> Loss:
        def total_of(outputs: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
            return _added(parts, step, outputs, batch)

        return total_of

    scheduled = [p.name for p in parts if callable(p.coefficient) or attribute(p.loss, "at")]

    def total(outputs: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        if scheduled:
            raise ValueError(
                f"the coefficients of {scheduled} follow the step: call total(...).at(step)"
            )
        return _added(parts, 0, outputs, batch)

    def check(outputs: Any, batch: Mapping[str, Any]) -> None:
        for part in parts:
            if examine := attribute(part.loss, "check"):
                examine(outputs, batch)

    def finalize(means: Mapping[str, float]) -> dict[str, float]:
        found: dict[str, float] = {}
        for part in parts:
            if derive := attribute(part.loss, "finalize"):
                found |= derive({**means, "loss": means[f"{part.name}_loss"]})
        return found

    total.check, total.finalize = check, finalize  # type: ignore[attr-defined]
    if scheduled:
        total.at = at  # type: ignore[attr-defined]
    return total


def _term(term: Loss | tuple[Loss, Coefficient]) -> Term:
    loss, coefficient = term if isinstance(term, tuple) else (term, 1.0)
    if not callable(loss):
        raise TypeError(f"total takes losses, or pairs (loss, coefficient); got {term!r:.100}")
    if isinstance(coefficient, bool) or not (
        callable(coefficient) or isinstance(coefficient, int | float)
    ):
        raise TypeError(f"a coefficient is a number or a schedule of the step; got {coefficient!r}")
    plain = loss.func if isinstance(loss, functools.partial) else loss
    name = getattr(plain, "__name__", type(plain).__name__)
    if not callable(coefficient) and not 0 <= coefficient < math.inf:
        raise ValueError(
            f"the coefficient of {name!r} must be finite and not negative; got {coefficient}"
        )
    return Term(name, loss, coefficient)


def _added(parts: list[Term], step: Any, outputs: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    owners: dict[str, str] = {}
    sums = []
    measured = {p.name: dict(loss_at(p.loss, step)(outputs, batch)) for p in parts}
    weighted = any(isinstance(values["loss"], tuple) for values in measured.values())
    for part in parts:
        values = measured[part.name]
        own = values.pop("loss")
        coefficient = part.coefficient
        values[f"{part.name}_loss"] = own
        if callable(coefficient):
            coefficient = coefficient(step)
            size = jax.tree.leaves(own)[0].shape
            values[f"{part.name}_coefficient"] = jnp.broadcast_to(jnp.asarray(coefficient), size)
        sums.append(coefficient * (_evened(own) if weighted else own))
        for name in values:
            if name in owners:
                raise ValueError(
                    f"the losses {owners[name]!r} and {part.name!r} both report {name!r}"
                )
            owners[name] = part.name
        found |= values
    return {"loss": functools.reduce(jnp.add, sums), **found}


def _evened(values: Any) -> jax.Array:
    """Give values whose plain mean is the weighted one; weights of 0 alone give 0."""
    if not isinstance(values, tuple):
        return values
    values, weights = values
    mean = jnp.mean(weights)
    return values * weights / jnp.where(mean == 0, 1, mean)
