"""Overfitting on purpose: a model that cannot learn a handful of examples by heart is broken."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from trainer.checks.arguments import describe_value, require_integer
from trainer.checks.suggestions import suggest_name
from trainer.phases.executors import EXECUTORS, choose_executor
from trainer.phases.state_buffers import check_structure, copy_state
from trainer.state import TrainState, attach_host_fields, strip_host_fields
from trainer.supervised.task import Task

One = Callable[[TrainState, Any], tuple[TrainState, jax.Array]]
"""`(state, batch) -> (state, loss)`."""


@dataclasses.dataclass(frozen=True, eq=False)
class OverfitResult:
    """What `trainer.overfit` found."""

    reached: bool
    """Whether a step's loss was at the target or below."""
    steps: int
    """How many were taken: until the target was reached, or a loss was not finite, or all."""
    losses: np.ndarray
    """float32 `[steps]`, each before the step's update."""
    state: TrainState
    """After the last step."""

    def __repr__(self) -> str:
        return (
            f"Overfitting(reached={self.reached}, steps={self.steps}, loss "
            f"{self.losses[0]:.4g} at first, {np.min(self.losses):.4g} at best, "
            f"{self.losses[-1]:.4g} at last)"
        )


def overfit(
    task: Task,
    batch: Mapping[str, Any],
    *,
    key: jax.Array | None = None,
    steps: int = 500,
    target: float = 0.01,
    executor: str = "auto",
) -> OverfitResult:
    """Train on one small batch until its loss is near zero: the first test of a model.

    If it does not get there, model, loss, optimizer or data are wrong, or the learning rate is
    too small. Where the least loss is not zero (smoothed labels, examples that contradict one
    another, augmentation that mixes or hides), give a target above it. A test takes a line:

        assert trainer.overfit(task, batch).reached

    Args:
        task: as `trainer.supervised` gives it.
        batch: a handful of real examples, arrays `[batch, ...]`.
        key: to initialise with; of seed 0 if absent.
        steps: at most so many updates.
        target: loss at which it ends.
        executor: `scan` (one program), `step` (one dispatch a step), or `auto`, as in `training`.

    Raises:
        ValueError: a setting is out of range, or the batch does not suit the task.

    >>> import optax
    >>> from types import SimpleNamespace
    >>> from trainer import losses, supervised
    >>> linear = SimpleNamespace(
    ...     init=lambda key, x: ({"w": jnp.zeros((x.shape[-1], 2))}, {}),
    ...     apply=lambda params, model_state, x, *, key, train: (x @ params["w"], model_state),
    ... )
    >>> batch = {"inputs": jnp.eye(2), "labels": jnp.array([1, 0])}
    >>> overfit(supervised(linear, losses.classification, optax.adam(0.1)), batch)
    Overfitting(reached=True, steps=..., loss 0.6931 at first, 0.00... at best, 0.00... at last)
    """
    require_integer("steps", steps, 1)
    if not isinstance(batch, Mapping):
        remedy = ": its first batch is source.example" if hasattr(batch, "example") else ""
        raise TypeError(
            f"overfit needs a batch, a dict of arrays; got {describe_value(batch)}{remedy}"
        )
    if executor not in EXECUTORS:
        raise ValueError(
            "executor must be auto, scan or step; got "
            f"{executor!r}.{suggest_name(executor, EXECUTORS)}"
        )
    batch = jax.tree.map(jnp.asarray, dict(batch))
    start = copy_state(task.init(jax.random.key(0) if key is None else key, batch))
    if (check := getattr(task.step, "check", None)) is not None:
        check(start, jax.tree.map(np.asarray, batch))

    def one(state: TrainState, batch: Any) -> tuple[TrainState, jax.Array]:
        after, metrics = task.step(state, batch)
        return check_structure(state, after, "the step of the task"), metrics["loss"].astype(
            jnp.float32
        )

    state = strip_host_fields(start)
    traced = jax.jit(one, donate_argnums=0).trace(state, batch)
    platform = next(iter(state.step.devices())).platform
    if choose_executor(executor, traced.jaxpr, platform).executor == "scan":
        after, losses = _in_one(one, state, batch, steps, target)
    else:
        after, losses = _step_by_step(traced.lower().compile(), state, batch, steps, target)
    reached = bool(np.isfinite(losses[-1]) and losses[-1] <= target)
    return OverfitResult(reached, len(losses), losses, attach_host_fields(after, start))


def _in_one(
    one: One, state: TrainState, batch: Any, steps: int, target: float
) -> tuple[TrainState, np.ndarray]:
    """Descend in one program, which ends by itself."""

    def descend(state: TrainState, batch: Any) -> tuple[TrainState, jax.Array, jax.Array]:
        def going(carry: Any) -> jax.Array:
            _, losses, count = carry
            last = losses[count - 1]
            return (count == 0) | ((count < steps) & (last > target) & jnp.isfinite(last))

        def advance(carry: Any) -> Any:
            state, losses, count = carry
            state, loss = one(state, batch)
            return state, losses.at[count].set(loss), count + 1

        begin = state, jnp.zeros(steps, jnp.float32), jnp.zeros((), jnp.int32)
        return lax.while_loop(going, advance, begin)

    state, losses, count = jax.jit(descend, donate_argnums=0)(state, batch)
    return state, np.array(losses[: int(count)])


def _step_by_step(
    one: One, state: TrainState, batch: Any, steps: int, target: float
) -> tuple[TrainState, np.ndarray]:
    losses: list[float] = []
    while len(losses) < steps:
        state, loss = one(state, batch)
        losses.append(float(loss))
        if not np.float32(target) < losses[-1] < np.inf:  # as the device compares
            break
    return state, np.array(losses, np.float32)
