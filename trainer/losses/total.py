"""Several losses as one, each with a coefficient that may follow a schedule."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trainer.losses.loss import Loss, LossFunction, as_loss

Coefficient = float | Callable[[Any], Any]
"""A number, or a schedule `(step) -> ()` as optax's are."""


class Term(NamedTuple):
    """One of the losses that are added."""

    name: str
    loss: Loss
    coefficient: Coefficient


def total(*terms: LossFunction | tuple[LossFunction, Coefficient]) -> Loss:
    """Add losses, each times its coefficient.

    The sum reports `loss`; for each term `<name>_loss` and everything else that the term reports,
    under the same names; `<name>_coefficient` where the coefficient follows a schedule. The name is
    that of the function. The terms' `check` and `finalize` apply to the sum too; `finalize` of a
    term receives the mean of the term's own loss as `loss`.

    An example's loss is the sum over the terms. Where terms weigh examples, as losses of tokens do,
    the weights of the first such term apply to the sum and to each `<name>_loss`: so these means
    add up to the mean of the sum, over any batches, and a sum of one term equals that term. Terms
    that weigh examples must weigh them alike; this is tried on real examples before training.

    A schedule is called with the optimizer step, so a resumed run follows it; the sum then has
    `takes_step`.

    Args:
        terms: losses, or pairs (loss, coefficient). The coefficient is 1 by default.

    Raises:
        TypeError: a term is no loss, or its coefficient is neither a number nor a schedule.
        ValueError: there is no term, a coefficient is negative or not finite, or two terms have one
            name; when traced, a term returns no `loss`, two report or derive the same name, or a
            schedule returns no scalar; before training, two weigh examples differently.

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
        raise ValueError(
            f"total tells losses apart by their functions' names; got {twice} twice: wrap one in a "
            "function of another name"
        )

    scheduled = [p.name for p in parts if callable(p.coefficient) or p.loss.takes_step]

    def total(outputs: Any, batch: Mapping[str, Any], *, step: Any = None) -> dict[str, Any]:
        if scheduled and step is None:
            raise ValueError(
                f"the coefficients of {scheduled} follow the step: call total(...) with step="
            )
        return _add(parts, step, outputs, batch)

    tried: list[bool] = []

    def check(outputs: Any, batch: Mapping[str, Any]) -> None:
        for part in parts:
            if part.loss.check:
                part.loss.check(outputs, batch)
        if not tried:
            _check_weights(parts, outputs, batch)
            tried.append(True)

    def finalize(means: Mapping[str, float]) -> dict[str, float]:
        derived: dict[str, Mapping[str, float]] = {}
        for part in parts:
            if part.loss.finalize:
                own = {**means, "loss": means[f"{part.name}_loss"]}
                derived[part.name] = part.loss.finalize(own)
        return _join(derived)

    whole = any(part.loss.whole_batch for part in parts)
    takes_step = bool(scheduled)
    return Loss(total, check=check, finalize=finalize, takes_step=takes_step, whole_batch=whole)


def _term(term: LossFunction | tuple[LossFunction, Coefficient]) -> Term:
    loss, coefficient = term if isinstance(term, tuple) and len(term) == 2 else (term, 1.0)
    if not callable(loss):
        raise TypeError(f"total takes losses, or pairs (loss, coefficient); got {term!r:.100}")
    if isinstance(coefficient, bool) or not (
        callable(coefficient) or isinstance(coefficient, int | float)
    ):
        raise TypeError(f"a coefficient is a number or a schedule of the step; got {coefficient!r}")
    loss = as_loss(loss)
    if not callable(coefficient) and not 0 <= coefficient < math.inf:
        raise ValueError(
            f"the coefficient of {loss.name!r} must be finite and not negative; got {coefficient}"
        )
    return Term(loss.name, loss, coefficient)


def _add(parts: list[Term], step: Any, outputs: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    measured = {p.name: dict(p.loss.at_step(step, outputs, batch)) for p in parts}
    for name, values in measured.items():
        if "loss" not in values:
            raise ValueError(f"the term {name!r} must return 'loss'; it returned {sorted(values)}")
    terms = {name: values.pop("loss") for name, values in measured.items()}
    weights = next((loss[1] for loss in terms.values() if isinstance(loss, tuple)), None)

    def weighted(values: jax.Array) -> Any:
        return values if weights is None else (values, weights)

    sums: list[jax.Array] = []
    own: dict[str, Any] = {}
    for part in parts:
        loss, coefficient = terms[part.name], _coefficient(part, step)
        loss = loss[0] if isinstance(loss, tuple) else loss
        if callable(part.coefficient):
            own[f"{part.name}_coefficient"] = jnp.broadcast_to(coefficient, loss.shape)
        own[f"{part.name}_loss"] = weighted(loss)
        sums.append(coefficient * loss)
    reports = _join({"total(...)": own, **measured})
    return {"loss": weighted(functools.reduce(jnp.add, sums)), **reports}


def _check_weights(parts: list[Term], outputs: Any, batch: Mapping[str, Any]) -> None:
    """Raise ValueError unless terms that weigh examples weigh the first host examples alike.

    Weights do not depend on the outputs, so the outputs are zeros here.
    """
    some = jax.tree.map(lambda array: array[:64], dict(batch))
    count = len(jax.tree.leaves(some)[0])
    zeros = jax.tree.map(lambda leaf: np.zeros((count, *leaf.shape[1:]), leaf.dtype), outputs)

    def weights(outputs: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        values = {part.name: part.loss.at_step(0, outputs, batch)["loss"] for part in parts}
        return {name: loss[1] for name, loss in values.items() if isinstance(loss, tuple)}

    if len(jax.eval_shape(weights, zeros, some)) < 2:
        return
    by_term = jax.jit(weights)(zeros, some)
    first, *others = (part.name for part in parts if part.name in by_term)
    wanted = by_term[first]
    for name in others:
        found = by_term[name]
        if (apart := ~np.isclose(wanted, found, rtol=1e-4)).any():
            place = int(np.argmax(apart))
            raise ValueError(
                f"total adds losses example by example, so terms that weigh examples must weigh "
                f"them alike; example {place} weighs {wanted[place]:.6g} in {first!r} and "
                f"{found[place]:.6g} in {name!r}: return one of them without weights (it then "
                "weighs as the other does), or give both the same weights"
            )


def _coefficient(part: Term, step: Any) -> Any:
    if not callable(part.coefficient):
        return part.coefficient
    value = part.coefficient(step)
    if jnp.shape(value):
        raise ValueError(
            f"the schedule of {part.name!r} must return a scalar (); got shape {jnp.shape(value)}"
        )
    return jnp.asarray(value, jnp.float32)


def _join(reports: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Merge the reports of terms; two terms that report the same name are an error."""
    owners: dict[str, str] = {}
    for term, values in reports.items():
        if twice := [name for name in values if name in owners]:
            raise ValueError(
                f"the losses {owners[twice[0]]!r} and {term!r} both report {twice[0]!r}: wrap one "
                "in a function that renames it, or leaves it out"
            )
        owners |= dict.fromkeys(values, term)
    return {name: value for values in reports.values() for name, value in values.items()}
