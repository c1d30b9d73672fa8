"""Several losses as one, each with a coefficient that may follow a schedule."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trainer.losses.loss import Loss, get_loss_attribute, get_loss_name, loss_at

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
    the function. What a term checks, and what it derives from means, goes on; it finds the mean of
    its own loss as `loss` there.

    An example's loss is the sum of those that the terms give it. Where terms weigh examples, as
    losses of tokens do, it weighs as the first of them says, in the sum and in each `<name>_loss`:
    so these means add up to the mean of the sum, over any batches, and a sum of one term is that
    term. Terms that weigh examples must weigh them alike; real examples are tried before training.

    A schedule is asked for the optimizer's step, so that a run that goes on follows it: the loss
    then has the attribute `at`, `(step) -> loss`, by which `supervised` and `rl.update` ask.

    Args:
        terms: losses, or pairs (loss, coefficient). Without a coefficient it is 1.

    Raises:
        TypeError: a term is no loss, or its coefficient neither a number nor a schedule.
        ValueError: there is no term, a coefficient is negative or not finite, or two terms have one
            name; when traced, a term gives no `loss`, two report or derive the same, or a schedule
            gives no scalar; before training, two weigh examples differently.

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

    def at(step: Any) -> Loss:
        def total_of(outputs: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
            return _added(parts, step, outputs, batch)

        return total_of

    scheduled = [
        p.name for p in parts if callable(p.coefficient) or get_loss_attribute(p.loss, "at")
    ]

    def total(outputs: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        if scheduled:
            raise ValueError(
                f"the coefficients of {scheduled} follow the step: call total(...).at(step)"
            )
        return _added(parts, 0, outputs, batch)

    tried: list[bool] = []

    def check(outputs: Any, batch: Mapping[str, Any]) -> None:
        for part in parts:
            if examine := get_loss_attribute(part.loss, "check"):
                examine(outputs, batch)
        if not tried:
            _check_weights(parts, outputs, batch)
            tried.append(True)

    def finalize(means: Mapping[str, float]) -> dict[str, float]:
        derived: dict[str, Mapping[str, float]] = {}
        for part in parts:
            if derive := get_loss_attribute(part.loss, "finalize"):
                derived[part.name] = derive({**means, "loss": means[f"{part.name}_loss"]})
        return _joined(derived)

    total.check, total.finalize = check, finalize  # type: ignore[attr-defined]
    total.whole_batch = any(  # type: ignore[attr-defined]
        get_loss_attribute(part.loss, "whole_batch") for part in parts
    )
    if scheduled:
        total.at = at  # type: ignore[attr-defined]
    return total


def _term(term: Loss | tuple[Loss, Coefficient]) -> Term:
    loss, coefficient = term if isinstance(term, tuple) and len(term) == 2 else (term, 1.0)
    if not callable(loss):
        raise TypeError(f"total takes losses, or pairs (loss, coefficient); got {term!r:.100}")
    if isinstance(coefficient, bool) or not (
        callable(coefficient) or isinstance(coefficient, int | float)
    ):
        raise TypeError(f"a coefficient is a number or a schedule of the step; got {coefficient!r}")
    name = get_loss_name(loss)
    if not callable(coefficient) and not 0 <= coefficient < math.inf:
        raise ValueError(
            f"the coefficient of {name!r} must be finite and not negative; got {coefficient}"
        )
    return Term(name, loss, coefficient)


def _added(parts: list[Term], step: Any, outputs: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    measured = {p.name: dict(loss_at(p.loss, step)(outputs, batch)) for p in parts}
    for name, values in measured.items():
        if "loss" not in values:
            raise ValueError(f"the term {name!r} must give 'loss'; it gave {sorted(values)}")
    given = {name: values.pop("loss") for name, values in measured.items()}
    weights = next((loss[1] for loss in given.values() if isinstance(loss, tuple)), None)

    def weighted(values: jax.Array) -> Any:
        return values if weights is None else (values, weights)

    sums: list[jax.Array] = []
    own: dict[str, Any] = {}
    for part in parts:
        loss, coefficient = given[part.name], _coefficient(part, step)
        loss = loss[0] if isinstance(loss, tuple) else loss
        if callable(part.coefficient):
            own[f"{part.name}_coefficient"] = jnp.broadcast_to(coefficient, loss.shape)
        own[f"{part.name}_loss"] = weighted(loss)
        sums.append(coefficient * loss)
    reports = _joined({"total(...)": own, **measured})
    return {"loss": weighted(functools.reduce(jnp.add, sums)), **reports}


def _check_weights(parts: list[Term], outputs: Any, batch: Mapping[str, Any]) -> None:
    """Check on the first of host examples that terms which weigh examples weigh them alike.

    Weights do not depend on the outputs, so zeros will do for these.

    Raises:
        ValueError: they do not.
    """
    some = jax.tree.map(lambda array: array[:64], dict(batch))
    count = len(jax.tree.leaves(some)[0])
    zeros = jax.tree.map(lambda leaf: np.zeros((count, *leaf.shape[1:]), leaf.dtype), outputs)

    def weights(outputs: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        given = {part.name: loss_at(part.loss, 0)(outputs, batch)["loss"] for part in parts}
        return {name: loss[1] for name, loss in given.items() if isinstance(loss, tuple)}

    if len(jax.eval_shape(weights, zeros, some)) < 2:
        return
    given = jax.jit(weights)(zeros, some)
    first, *others = (part.name for part in parts if part.name in given)
    wanted = given[first]
    for name in others:
        found = given[name]
        if not np.allclose(wanted, found, rtol=1e-4):
            place = int(np.argmax(~np.isclose(wanted, found, rtol=1e-4)))
            raise ValueError(
                f"total adds losses up example by example, so that terms which weigh examples must "
                f"weigh them alike; example {place} weighs {wanted[place]:.6g} in {first!r} and "
                f"{found[place]:.6g} in {name!r}: give one of them without its weights (it then "
                "weighs as the other does), or both the same ones"
            )


def _coefficient(part: Term, step: Any) -> Any:
    if not callable(part.coefficient):
        return part.coefficient
    value = part.coefficient(step)
    if jnp.shape(value):
        raise ValueError(
            f"the schedule of {part.name!r} must give a scalar (); got shape {jnp.shape(value)}"
        )
    return jnp.asarray(value, jnp.float32)


def _joined(reports: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Join what terms report, by the term's name; one name of two terms is refused."""
    owners: dict[str, str] = {}
    for term, values in reports.items():
        for name in values:
            if name in owners:
                raise ValueError(
                    f"the losses {owners[name]!r} and {term!r} both report {name!r}: wrap one in a "
                    "function that gives it another name, or leaves it out"
                )
            owners[name] = term
    return {name: value for values in reports.values() for name, value in values.items()}
