"""Environment steps that return the same bits in every compiled function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from trainer.rl.environments.environment import Environment, TimeStep
from trainer.state import PyTree

STEP = 1
"""Folded, with the number of the step, into an episode's key to make the key of the step."""


def isolate_step(env: Environment) -> Callable[..., TimeStep]:
    """Build a step `(root, t, state, action, params) -> TimeStep` that rounds alike everywhere.

    XLA fuses a step with the code around it, and the fusion changes the rounding: 500 steps later
    that may be another episode. XLA fuses nothing across a loop of one turn if it cannot know the
    number of turns, so `t` must come from an argument of the compiled function.
    """

    def step(
        root: jax.Array, t: jax.Array, state: PyTree, action: jax.Array, params: PyTree
    ) -> TimeStep:
        # As numbers: JAX's check of keys counts the barrier as a use of the root.
        inputs = jax.random.key_data(root), t, state, action, params
        kind = jax.random.key_impl(root)

        def body(carried: tuple[jax.Array, TimeStep]) -> tuple[jax.Array, TimeStep]:
            turn, (data, t, state, action, params) = lax.optimization_barrier((carried[0], inputs))
            root = jax.random.wrap_key_data(data, impl=kind)
            key = jax.random.fold_in(jax.random.fold_in(root, STEP), t)
            return turn + 1, _to_arrays(env.step(key, state, action, params))

        first = make_initial_step(env, root, (state, None), action, params)
        once = jnp.where(t < 0, 0, 1)
        return lax.while_loop(lambda carried: carried[0] < once, body, (jnp.int32(0), first))[1]

    return step


def make_initial_step(
    env: Environment, root: jax.Array, begun: tuple[PyTree, PyTree], action: Any, params: PyTree
) -> TimeStep:
    """Return a step with the right shapes and (state, observation) as begun, before the first."""
    state, observation = begun
    shape = jax.eval_shape(lambda *x: _to_arrays(env.step(*x)), root, state, action, params)
    zeros = jax.tree.map(lambda one: jnp.zeros(one.shape, one.dtype), shape._replace(state=()))
    observation = zeros.observation if observation is None else observation
    return zeros._replace(state=state, observation=observation)


def _to_arrays(step: TimeStep) -> TimeStep:
    """Cast what environments may return as Python numbers."""
    return step._replace(
        reward=jnp.asarray(step.reward, jnp.float32),
        terminated=jnp.asarray(step.terminated, bool),
        truncated=jnp.asarray(step.truncated, bool),
        info=jax.tree.map(jnp.asarray, dict(step.info)),
    )
