"""Weights of the sources of a mixture: numbers, schedules and tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from trainer.checks.arguments import require_integer, require_number

Weight = float | Callable[[int], Any] | Mapping[int, float]
"""A number; a function of the step, such as a schedule of optax; or a table `{step: weight}`, of
which each entry holds from its step on."""

UNIT = 2**24
"""The share of all weights together: shares are whole numbers, so sums of them are exact."""


def evaluate_weight(name: str, weight: Weight, step: int) -> float:
    """Return the weight of a source at a step.

    Raises:
        TypeError: it is no number, or a step of a table is no whole number.
        ValueError: a table begins after the step, or has a step below 0.

    >>> evaluate_weight("a", {0: 0.5, 10: 2.0}, 12), evaluate_weight("a", lambda step: step / 2, 3)
    (2.0, 1.5)
    """
    what = f"the weight of {name!r} at step {step}"
    if isinstance(weight, Mapping):
        steps = f"a step in the table of weights of {name!r}"
        begun = [at for at in weight if require_integer(steps, at, 0) <= step]
        if not begun:
            raise ValueError(f"{what} is missing: its table begins at {min(weight, default=None)}")
        return require_number(what, weight[max(begun)])
    if callable(weight):
        with jax.default_device(_find_cpu()):
            return require_number(what, np.asarray(weight(step))[()])
    return require_number(what, weight)


def _find_cpu() -> jax.Device | None:
    """Return the host as a device: on another, a schedule would wait for the steps before it."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves it out
        return None


def compute_shares(weights: Sequence[float], where: str) -> tuple[int, ...]:
    """Return shares in proportion to weights, whole numbers with the sum `UNIT`.

    Raises:
        ValueError: a weight is negative or not finite, or all are zero; `where` names them.

    >>> compute_shares([2, 1, 1], "weights") == (UNIT // 2, UNIT // 4, UNIT // 4)
    True
    """
    total = math.fsum(weights)
    given = ", ".join(map(str, weights))
    if not (math.isfinite(total) and total > 0 and min(weights) >= 0):
        raise ValueError(f"{where} must be finite, none below 0, and one above; got {given}")
    exact = [UNIT * weight / total for weight in weights]
    shares = [math.floor(one) for one in exact]
    fractions = sorted(range(len(exact)), key=lambda k: shares[k] - exact[k])
    for k in fractions[: UNIT - sum(shares)]:
        shares[k] += 1
    return tuple(shares)
