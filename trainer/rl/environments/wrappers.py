"""Wrappers: pure functions `Environment -> Environment`, which keep spaces, params and lessons.

`auto_reset` is the outermost. On the first step, each raises ValueError if the environment inside
already resets by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from trainer.rl.environments.environment import Environment, TimeStep, infer_first_step
from trainer.state import PyTree


class RecordEpisodesState(NamedTuple):
    """State of `record_episodes`."""

    environment: PyTree
    """State of the wrapped environment."""
    episode_return: jax.Array
    """() float32: sum of the episode's rewards so far."""
    episode_length: jax.Array
    """() int32: its steps so far."""


class TimeLimitState(NamedTuple):
    """State of `time_limit`."""

    environment: PyTree
    """State of the wrapped environment."""
    elapsed: jax.Array
    """() int32: steps since the episode began."""


def auto_reset(env: Environment) -> Environment:
    """Begin a new episode in the step that ends one.

    If a step terminates or truncates the episode, its `state` and `observation` are those of a new
    episode, reset with another key; reward, `terminated` and `truncated` are the step's own.
    `info["final_observation"]` is the step's observation before any reset: the rewards that would
    follow a truncated step are estimated by its value. The state stays that of `env`.

    >>> from trainer.rl.environments import cartpole
    >>> env = auto_reset(time_limit(cartpole(), 1))
    >>> state, begun = env.reset(jax.random.key(0), env.params)
    >>> step = env.step(jax.random.key(1), state, jnp.int32(0), env.params)
    >>> bool(step.truncated), int(step.state.elapsed)
    (True, 0)
    >>> bool((step.info["final_observation"] == step.observation).any())
    False
    """

    def step(key: jax.Array, state: PyTree, action: jax.Array, params: PyTree) -> TimeStep:
        step_key, reset_key = jax.random.split(key)
        return reset_if_ended(env, reset_key, env.step(step_key, state, action, params), params)

    return env._replace(step=step)


def reset_if_ended(env: Environment, key: jax.Array, taken: TimeStep, params: PyTree) -> TimeStep:
    """Return the step of `auto_reset`, with `key` for the new episode."""
    _refuse_auto_reset("auto_reset", taken.info)
    begun = env.reset(key, params)
    ended = taken.terminated | taken.truncated
    state, observation = jax.tree.map(
        lambda new, old: jnp.where(ended, new, old), begun, (taken.state, taken.observation)
    )
    info = {**taken.info, "final_observation": taken.observation}
    return taken._replace(state=state, observation=observation, info=info)


def record_episodes(env: Environment) -> Environment:
    """Report the return and the length of the episode, up to and including each step.

    They are `info["episode_return"]`, float32, and `info["episode_length"]`, int32; at the step
    that ends an episode, those of the whole episode. The state is a `RecordEpisodesState`.

    >>> from trainer.rl.environments import cartpole
    >>> env = record_episodes(cartpole())
    >>> state, _ = env.reset(jax.random.key(0), env.params)
    >>> for _ in range(3):
    ...     step = env.step(jax.random.key(1), state, jnp.int32(0), env.params)
    ...     state = step.state
    >>> float(step.info["episode_return"]), int(step.info["episode_length"])
    (3.0, 3)
    """

    def reset(key: jax.Array, params: PyTree) -> tuple[RecordEpisodesState, PyTree]:
        state, observation = env.reset(key, params)
        return RecordEpisodesState(state, jnp.float32(0), jnp.int32(0)), observation

    def step(
        key: jax.Array, state: RecordEpisodesState, action: jax.Array, params: PyTree
    ) -> TimeStep:
        taken = env.step(key, state.environment, action, params)
        _refuse_auto_reset("record_episodes", taken.info)
        total, length = state.episode_return + taken.reward, state.episode_length + 1
        info = {**taken.info, "episode_return": total, "episode_length": length}
        return taken._replace(state=RecordEpisodesState(taken.state, total, length), info=info)

    return env._replace(reset=reset, step=step, render=_render_inner(env))


def time_limit(env: Environment, steps: int) -> Environment:
    """Cut episodes off after a number of steps.

    The last of them is `truncated`, unless the episode terminates in it. The state is a
    `TimeLimitState`.

    Raises:
        ValueError: `steps` is less than 1.

    >>> from trainer.rl.environments import cartpole
    >>> env = time_limit(cartpole(), 2)
    >>> state, _ = env.reset(jax.random.key(0), env.params)
    >>> for _ in range(2):
    ...     step = env.step(jax.random.key(1), state, jnp.int32(0), env.params)
    ...     state = step.state
    ...     print(bool(step.terminated), bool(step.truncated))
    False False
    False True
    """
    if steps < 1:
        raise ValueError(f"time_limit: steps must be at least 1; got {steps}")

    def reset(key: jax.Array, params: PyTree) -> tuple[TimeLimitState, PyTree]:
        state, observation = env.reset(key, params)
        return TimeLimitState(state, jnp.int32(0)), observation

    def step(key: jax.Array, state: TimeLimitState, action: jax.Array, params: PyTree) -> TimeStep:
        taken = env.step(key, state.environment, action, params)
        _refuse_auto_reset("time_limit", taken.info)
        after = TimeLimitState(taken.state, state.elapsed + 1)
        cut_off = (after.elapsed >= steps) & ~taken.terminated
        return taken._replace(state=after, truncated=taken.truncated | cut_off)

    return env._replace(reset=reset, step=step, render=_render_inner(env))


def _render_inner(env: Environment) -> Callable[[PyTree, PyTree], jax.Array] | None:
    """Return the render function of the wrapped environment, if it has one."""
    draw = env.render
    if draw is None:
        return None
    return lambda state, params: draw(state.environment, params)


def check_no_auto_reset(env: Environment, params: PyTree, who: str) -> None:
    """Raise ValueError, computing nothing, if an environment has an `auto_reset` wrapper."""
    if "final_observation" in infer_first_step(env, params)[2].info:
        raise ValueError(
            f"{who} needs {env.name!r} without auto_reset, since it runs whole episodes: use the "
            "environment inside auto_reset"
        )


def _refuse_auto_reset(wrapper: str, info: Mapping[str, jax.Array]) -> None:
    """Refuse to count in an environment that resets by itself."""
    if "final_observation" in info:
        raise ValueError(
            f"{wrapper} needs an environment that does not reset by itself; got one that does "
            f"(its steps return 'final_observation'); put auto_reset around the other wrappers"
        )
