"""Adapter for environments of gymnax."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from trainer.checks.pytrees import has_same_structure
from trainer.rl.environments import adapters
from trainer.rl.environments.environment import Environment, Space, TimeStep, example
from trainer.state import PyTree


def from_gymnax(env: Any, params: PyTree = None) -> Environment:
    """Build an environment from one of gymnax.

    Its params stay gymnax's record with a field for each, so another gravity is
    `env.params.replace(gravity=20.0)`. A step terminates if gymnax says so, and truncates if it
    reaches the time limit and does not terminate; gymnax's own reset afterwards is left out.

    Observations that are records become a dict of arrays; names of nested ones are paths.

    For example, with gymnax installed::

        env = from_gymnax(*gymnax.make("CartPole-v1"))
        state, observation = env.reset(jax.random.key(0), env.params)
        step = env.step(jax.random.key(1), state, jnp.int32(0), env.params)

    Args:
        env: an environment of gymnax 1.0 or newer, as `gymnax.make(name)[0]` returns it.
        params: of it; its `default_params` if absent.

    Raises:
        TypeError: it is no environment of gymnax, or of an older version, which does not separate
            termination from truncation.
        ValueError: its actions are neither a `Discrete` nor a `Box`.

    Source: R. T. Lange, gymnax: A JAX-based Reinforcement Learning Environment Library, 2022.
    """
    for method in ("reset_env", "step_env", "is_truncated"):
        if not hasattr(env, method):
            raise TypeError(
                f"from_gymnax needs an environment of gymnax 1.0 or newer; got a "
                f"{type(env).__name__} without {method}: pass the result of "
                "gymnax.make(name), from_gymnax(*gymnax.make(name))"
            )
    initial = adapters.strip_weak_types(env.default_params if params is None else params)
    space = _observation_space(env, initial)
    actions = adapters.action_space(env.action_space(initial), env.name)

    def reset(key: jax.Array, params: PyTree) -> tuple[PyTree, PyTree]:
        observation, state = env.reset_env(key, params)
        named = adapters.flatten_observation(observation)
        return adapters.strip_weak_types(state), adapters.cast_observation(space, named)

    def step(key: jax.Array, state: PyTree, action: jax.Array, params: PyTree) -> TimeStep:
        observation, after, reward, terminated, _ = env.step_env(key, state, action, params)
        terminated = jnp.asarray(terminated, bool)
        return TimeStep(
            adapters.strip_weak_types(after),
            adapters.cast_observation(space, adapters.flatten_observation(observation)),
            jnp.asarray(reward, jnp.float32),
            terminated,
            jnp.asarray(env.is_truncated(after, params), bool) & ~terminated,
        )

    def check(params: PyTree) -> None:
        if not has_same_structure(initial, params):
            raise ValueError(
                f"params of {env.name!r} must be a {type(initial).__name__}, as env.params is; got "
                f"a {type(params).__name__}: make them with env.params.replace(...)"
            )
        other = _observation_space(env, params)
        other_actions = adapters.action_space(env.action_space(params), env.name)
        # Only shapes and dtypes: bounds may differ between lessons.
        wanted, got = (jax.eval_shape(functools.partial(example, one)) for one in (space, other))
        if got != wanted or other_actions != actions:
            raise ValueError(
                f"params of {env.name!r} must leave its spaces as they are, {space} and {actions}; "
                f"got {other} and {other_actions}: make another environment, "
                "from_gymnax(env, params)"
            )

    return Environment(env.name, reset, step, space, actions, initial, check)


def _observation_space(env: Any, params: PyTree) -> Space:
    observation, _ = jax.eval_shape(env.reset_env, jax.random.key(0), params)
    return adapters.observation_space(
        env.observation_space(params), adapters.flatten_observation(observation)
    )
