"""Recalibration: measure batch statistics again, for parameters that training did not use."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trainer.data.source import Source
from trainer.phases.buffers.state_buffers import copy_state
from trainer.phases.factories import training
from trainer.phases.phase import Phase
from trainer.state import PyTree, TrainState


def recalibration(task: Any, source: Source, *, name: str = "recalibration") -> Phase:
    """Build a phase that measures batch statistics again, for `recalibrate_batch_stats`.

    A network with averaged parameters never saw data: the batch statistics in `state.model_state`
    are those of the trained parameters and do not suit it. The phase runs the network in training
    mode over the source and does not change the parameters. The statistics become the mean over all
    batches of the statistics of each batch alone, independent of the network's momentum.

    Args:
        task: of `trainer.supervised`.
        source: of the training data; batches are augmented as in training.
        name: of the phase.
    """

    def step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        fixed = _fixed_point(lambda s: task.statistics(state.replace(model_state=s), batch), state)
        share = 1 / (state.step + 1)

        def mean(old: jax.Array, new: jax.Array) -> jax.Array:
            if not jnp.issubdtype(old.dtype, jnp.inexact):
                return new
            return jnp.where(state.step == 0, new, old + share.astype(old.dtype) * (new - old))

        after = jax.tree.map(mean, state.model_state, fixed)
        return state.replace(model_state=after, step=state.step + 1), {"batches": jnp.float32(1)}

    return training(step, source, name=name, reduce={"batches": "sum"})


def recalibrate_batch_stats(state: TrainState, phase: Phase) -> TrainState:
    """Return a state with batch statistics that suit its parameters; the argument is unchanged.

    Args:
        state: with averaged parameters, for instance `state.hook_state["swa"]["params"]`.
        phase: from `recalibration`.

    >>> from types import SimpleNamespace
    >>> import numpy as np
    >>> import optax
    >>> from trainer import data, losses, supervised
    >>> def apply(params, model_state, x, *, key, train):
    ...     mean = x.mean(0) if train else model_state["mean"]
    ...     return x - mean, {"mean": 0.99 * model_state["mean"] + 0.01 * mean}
    >>> centred = SimpleNamespace(init=lambda key, x: ({}, {"mean": jnp.zeros(2)}), apply=apply)
    >>> rows = np.array([[1.0, 2.0], [3.0, 6.0]] * 4, "float32")
    >>> source = data.Arrays({"inputs": rows, "labels": np.zeros(8, int)}, batch_size=8)
    >>> task = supervised(centred, losses.classification, optax.sgd(0.1))
    >>> state = task.init(jax.random.key(0), source.example)
    >>> recalibrate_batch_stats(state, recalibration(task, source)).model_state["mean"].round(3)
    Array([2., 4.], dtype=float32)
    """
    own = state.replace(step=jnp.zeros((), jnp.int32), opt_state=(), hook_state={}, scores={})
    start = phase.add_position(copy_state(own))
    after, _, measured = phase.execute(start, None, donate=True)
    measured.read()
    return state.replace(model_state=after.model_state)


def _fixed_point(update: Any, state: TrainState) -> PyTree:
    """Return the statistics to which repeating one batch would converge.

    A running average is `kept * old + (1 - kept) * new`: `kept` is its derivative by `old`, and
    `new` follows. A leaf that is no average stays as the update returns it.
    """

    def is_float(leaf: jax.Array) -> bool:
        return jnp.issubdtype(leaf.dtype, jnp.inexact)

    def make_tangent(leaf: jax.Array) -> Any:
        return jnp.ones_like(leaf) if is_float(leaf) else np.zeros(leaf.shape, jax.dtypes.float0)

    def fix(before: jax.Array, now: jax.Array, kept: jax.Array) -> jax.Array:
        if not is_float(before):
            return now
        averaged = (kept >= 0) & (kept < 1)
        fixed = (now - kept * before) / jnp.where(averaged, 1 - kept, 1)
        return jnp.where(averaged, fixed, now).astype(now.dtype)

    before = state.model_state
    after, kept = jax.jvp(update, (before,), (jax.tree.map(make_tangent, before),))
    return jax.tree.map(fix, before, after, kept)
