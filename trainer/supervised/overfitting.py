"""Overfitting on purpose: a model that cannot memorise a few examples is broken."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from trainer.checks.arguments import describe_value, require_integer
from trainer.phases.batch_functions import CheckedStep, as_step
from trainer.phases.buffers.state_buffers import copy_state
from trainer.phases.executors import choose_executor, require_executor
from trainer.state import TrainState, attach_host_fields, strip_host_fields
from trainer.supervised.task import Task

LossStep = Callable[[TrainState, Any], tuple[TrainState, jax.Array]]
"""`(state, batch) -> (state, loss)`."""


@dataclasses.dataclass(frozen=True, eq=False)
class OverfitResult:
    """The result of `trainer.overfit`."""

    reached: bool
    """Whether a step's loss was at the target or below."""
    steps: int
    """The number of steps, until the target was reached or a loss was not finite."""
    losses: np.ndarray
    """float32 `[steps]`, each before the step's update."""
    state: TrainState
    """The state after the last step."""

    def __repr__(self) -> str:
        return (
            f"OverfitResult(reached={self.reached}, steps={self.steps}, loss "
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

    If the loss stays high, the model, loss, optimizer or data are wrong, or the learning rate is
    too small. Where the lowest possible loss is not zero (smoothed labels, contradictory examples,
    augmentation that mixes or hides), set a target above it. A test needs one line:

        assert trainer.overfit(task, batch).reached

    Args:
        task: from `trainer.supervised`.
        batch: a few real examples, arrays `[batch, ...]`.
        key: to initialise with; None: that of seed 0.
        steps: largest number of updates.
        target: loss at which it stops.
        executor: `scan` (one compiled loop), `step` (one dispatch per step), or `auto`, as in
            `training`.

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
    OverfitResult(reached=True, steps=..., loss 0.6931 at first, 0.00... at best, 0.00... at last)
    """
    require_integer("steps", steps, 1)
    if not isinstance(batch, Mapping):
        remedy = ": its first batch is source.example" if hasattr(batch, "example") else ""
        raise TypeError(
            f"overfit needs a batch, a dict of arrays; got {describe_value(batch)}{remedy}"
        )
    require_executor(executor)
    batch = jax.tree.map(jnp.asarray, dict(batch))
    start = copy_state(task.init(jax.random.key(0) if key is None else key, batch))
    if (check := as_step(task.step).check) is not None:
        check(start, jax.tree.map(np.asarray, batch))
    checked = CheckedStep(as_step(task.step).function, "overfit")

    def step(state: TrainState, batch: Any) -> tuple[TrainState, jax.Array]:
        after, metrics = checked(state, batch)
        return after, metrics["loss"].astype(jnp.float32)

    state = strip_host_fields(start)
    traced = jax.jit(step, donate_argnums=0).trace(state, batch)
    platform = next(iter(state.step.devices())).platform
    if choose_executor(executor, traced.jaxpr, platform).executor == "scan":
        after, losses = _run_compiled_loop(step, state, batch, steps, target)
    else:
        after, losses = _run_stepwise(traced.lower().compile(), state, batch, steps, target)
    reached = bool(np.isfinite(losses[-1]) and losses[-1] <= target)
    return OverfitResult(reached, len(losses), losses, attach_host_fields(after, start))


def _run_compiled_loop(
    step: LossStep, state: TrainState, batch: Any, steps: int, target: float
) -> tuple[TrainState, np.ndarray]:
    """Run all steps in one compiled loop, which ends by itself."""

    def loop(state: TrainState, batch: Any) -> tuple[TrainState, jax.Array, jax.Array]:
        def continues(carry: Any) -> jax.Array:
            _, losses, count = carry
            last = losses[count - 1]
            return (count == 0) | ((count < steps) & (last > target) & jnp.isfinite(last))

        def advance(carry: Any) -> Any:
            state, losses, count = carry
            state, loss = step(state, batch)
            return state, losses.at[count].set(loss), count + 1

        start = state, jnp.zeros(steps, jnp.float32), jnp.zeros((), jnp.int32)
        return lax.while_loop(continues, advance, start)

    state, losses, count = jax.jit(loop, donate_argnums=0)(state, batch)
    return state, np.array(losses[: int(count)])


def _run_stepwise(
    step: LossStep, state: TrainState, batch: Any, steps: int, target: float
) -> tuple[TrainState, np.ndarray]:
    losses: list[float] = []
    while len(losses) < steps:
        state, loss = step(state, batch)
        losses.append(float(loss))
        if not np.float32(target) < losses[-1] < np.inf:  # as the device compares
            break
    return state, np.array(losses, np.float32)
