"""Steps of an environment that give the same bits in every program that takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from trainer.rl.environments.environment import Environment, Step
from trainer.state import PyTree

STEP = 1
"""Folded into an episode's key, with the number of the step, for the key of the step."""


def isolate_step(env: Environment) -> Callable[..., Step]:
    """Make a step `(root, t, state, action, params) -> Step` that rounds alike in any program.

    XLA fuses a step with what surrounds it, and rounds by what it fused: 500 steps later that may
    be another episode. A loop that turns once is a wall that nothing crosses, where XLA cannot know
    how often it turns: `t` must come from an argument of the program.
    """

    def step(
        root: jax.Array, t: jax.Array, state: PyTree, action: jax.Array, params: PyTree
    ) -> Step:
        # As numbers: JAX's check of keys counts the barrier as a use of the root.
        given = jax.random.key_data(root), t, state, action, params
        kind = jax.random.key_impl(root)

        def body(carried: tuple[jax.Array, Step]) -> tuple[jax.Array, Step]:
            turn, (data, t, state, action, params) = lax.optimization_barrier((carried[0], given))
            root = jax.random.wrap_key_data(data, impl=kind)
            key = jax.random.fold_in(jax.random.fold_in(root, STEP), t)
            return turn + 1, _typed(env.step(key, state, action, params))

        first = make_initial_step(env, root, state, None, action, params)
        once = jnp.where(t < 0, 0, 1)
        return lax.while_loop(lambda carried: carried[0] < once, body, (jnp.int32(0), first))[1]

    return step


def make_initial_step(
    env: Environment, root: jax.Array, state: PyTree, seen: PyTree, action: Any, params: PyTree
) -> Step:
    """Give a step of the right shapes before any was taken."""
    shape = jax.eval_shape(lambda *given: _typed(env.step(*given)), root, state, action, params)
    zeros = jax.tree.map(lambda one: jnp.zeros(one.shape, one.dtype), shape._replace(state=()))
    observation = zeros.observation if seen is None else seen
    return zeros._replace(state=state, observation=observation)


def _typed(step: Step) -> Step:
    """Cast what environments may give as numbers of Python."""
    return step._replace(
        reward=jnp.asarray(step.reward, jnp.float32),
        terminated=jnp.asarray(step.terminated, bool),
        truncated=jnp.asarray(step.truncated, bool),
        info=jax.tree.map(jnp.asarray, dict(step.info)),
    )
