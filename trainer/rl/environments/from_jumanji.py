"""Adapter for environments of jumanji."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from trainer.rl.environments import adapters
from trainer.rl.environments.environment import Environment, TimeStep
from trainer.state import PyTree


def from_jumanji(env: Any) -> Environment:
    """Build an environment from one of jumanji.

    Its last step terminates the episode if the discount is 0, and truncates it otherwise; most of
    jumanji's time limits terminate. It has no params, and takes its random numbers from the key of
    the episode's `reset`.

    Observations that are records become a dict of arrays; names of nested ones are paths, such as
    `agent_position/row`. They include the mask of allowed actions, `action_mask`, which the policy
    may read; other actions are not forbidden here.

    For example, with jumanji installed::

        env = from_jumanji(jumanji.make("Snake-v1"))
        state, observation = env.reset(jax.random.key(0), env.params)
        step = env.step(jax.random.key(1), state, jnp.int32(0), env.params)

    Args:
        env: an environment of jumanji, as `jumanji.make(name)` returns it.

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
                f"{member}: pass the result of jumanji.make(name)"
            )
    name = type(getattr(env, "unwrapped", env)).__name__
    if env.reward_spec.shape:
        raise ValueError(
            f"{name!r} must return one reward a step; it returns "
            f"{list(env.reward_spec.shape)}, one for each of its agents: wrap it, as "
            "jumanji.wrappers.MultiToSingleWrapper does"
        )
    actions = adapters.action_space(env.action_spec, name)
    _, begun = jax.eval_shape(env.reset, jax.random.key(0))
    space = adapters.observation_space(
        env.observation_spec, adapters.flatten_observation(begun.observation)
    )

    def reset(key: jax.Array, params: PyTree) -> tuple[PyTree, PyTree]:
        state, timestep = env.reset(key)
        observation = adapters.flatten_observation(timestep.observation)
        return adapters.strip_weak_types(state), adapters.cast_observation(space, observation)

    def step(key: jax.Array, state: PyTree, action: jax.Array, params: PyTree) -> TimeStep:
        after, timestep = env.step(state, jnp.asarray(action, env.action_spec.dtype))
        terminates = timestep.discount == 0
        return TimeStep(
            adapters.strip_weak_types(after),
            adapters.cast_observation(space, adapters.flatten_observation(timestep.observation)),
            jnp.asarray(timestep.reward, jnp.float32),
            timestep.last() & terminates,
            timestep.last() & ~terminates,
        )

    return Environment(name, reset, step, space, actions, ())
