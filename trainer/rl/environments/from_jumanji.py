"""Environments of jumanji."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from trainer.rl.environments import adapters
from trainer.rl.environments.environment import Environment, Step
from trainer.state import PyTree


def from_jumanji(env: Any) -> Environment:
    """Make an environment of one of jumanji.

    Its last step terminates the episode where the discount is 0, and truncates it where it is not;
    most of jumanji's time limits are of the first kind.
    It has no params, and draws what it draws at random from the key of the episode's `reset`.

    Observations that are records become a dict of arrays, what is nested named by its path:
    `agent_position/row`. They include the mask of the actions that are allowed, `action_mask`,
    which the policy may look at; nothing here forbids the others.

    For example, with jumanji installed::

        env = from_jumanji(jumanji.make("Snake-v1"))
        state, observation = env.reset(jax.random.key(0), env.params)
        step = env.step(jax.random.key(1), state, jnp.int32(0), env.params)

    Args:
        env: an environment of jumanji, as `jumanji.make(name)` gives it.

    Raises:
        TypeError: it is no environment of jumanji.
        ValueError: an action is several categories at once, or there are several rewards, as with
            several agents.

    Source: C. Bonnet et al., Jumanji: a Diverse Suite of Scalable Reinforcement Learning
    Environments in JAX, 2024.
    """
    for member in ("action_spec", "observation_spec", "reward_spec"):
        if not hasattr(env, member):
            raise TypeError(
                f"from_jumanji needs an environment of jumanji; got a {type(env).__name__} without "
                f"{member}: pass what jumanji.make(name) gives"
            )
    name = type(getattr(env, "unwrapped", env)).__name__
    if env.reward_spec.shape:
        raise ValueError(
            f"{name!r} must give one reward a step; it gives {list(env.reward_spec.shape)}, one "
            "for each of its agents: wrap it, as jumanji.wrappers.MultiToSingleWrapper does"
        )
    actions = adapters.action_space(env.action_spec, name)
    _, begun = jax.eval_shape(env.reset, jax.random.key(0))
    space = adapters.observation_space(
        env.observation_spec, adapters.flatten_observation(begun.observation)
    )

    def reset(key: jax.Array, params: PyTree) -> tuple[PyTree, PyTree]:
        state, given = env.reset(key)
        observation = adapters.flatten_observation(given.observation)
        return adapters.strip_weak_types(state), adapters.cast_observation(space, observation)

    def step(key: jax.Array, state: PyTree, action: jax.Array, params: PyTree) -> Step:
        after, given = env.step(state, jnp.asarray(action, env.action_spec.dtype))
        over = given.discount == 0
        return Step(
            adapters.strip_weak_types(after),
            adapters.cast_observation(space, adapters.flatten_observation(given.observation)),
            jnp.asarray(given.reward, jnp.float32),
            given.last() & over,
            given.last() & ~over,
        )

    return Environment(name, reset, step, space, actions, ())
