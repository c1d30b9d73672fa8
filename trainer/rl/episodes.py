"""Playing: one episode with the policy of a state, as a replay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from trainer.checks.suggestions import suggest_and_list
from trainer.rl.environments.environment import Environment
from trainer.rl.environments.wrappers import check_no_auto_reset
from trainer.rl.isolated_steps import STEP, isolate_step, make_initial_step
from trainer.rl.policies import (
    act,
    check_policy,
    clip_action,
    forward,
    init_recurrent_state,
    weights_of,
)
from trainer.rl.replays import RESET, Replay, checksum_of, derive_episode_key, keys_to_data
from trainer.state import PyTree, TrainState

ACT = STEP + 1
"""Folded into an episode's key, with the number of the step, for the key of an action."""


def make_episode_player(
    network: Any,
    env: Environment,
    *,
    lesson: str | None = None,
    greedy: bool = True,
    max_steps: int = 1000,
) -> Callable[[TrainState, int, int], Replay]:
    """Make a function `(state, seed, number) -> Replay` that plays an episode with its policy.

    It is one program, compiled once, and depends on the state's weights and its arguments alone:
    not on the state's key, nor on where training's environments are.

    Args:
        network: of the policy, see `trainer.rl.policies.forward`.
        env: to play in, without wrappers that reset it.
        lesson: one of `env.lessons` to play; drawn by `env.params` if None.
        greedy: choose the likeliest action; False draws it.
        max_steps: after which an episode is left.

    Raises:
        TypeError: the environment is none of pure functions.
        ValueError: the network does not fit the environment, which resets by itself, or has no such
            lesson; `max_steps` is below 1; when it plays, an action or a reward is not finite.
    """
    if not isinstance(env, Environment):
        raise TypeError(f"a replay needs an Environment of pure functions; got {env!r:.100}")
    check_policy(network, env)
    if isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 1:
        raise ValueError(f"max_steps must be a whole number of at least 1; got {max_steps!r}")
    params = params_of(env, lesson)
    check_no_auto_reset(env, params, "a replay")
    begun, step = jax.jit(env.reset), isolate_step(env)

    @jax.jit
    def play(weights: Any, params: PyTree, root: jax.Array, t: int, state: Any, seen: Any) -> Any:
        def body(carried: Any) -> Any:
            t, before, recurrent, actions, rewards = carried
            key = None if greedy else jax.random.fold_in(jax.random.fold_in(root, ACT), t)
            seen = jax.tree.map(lambda x: x[None], before.observation)
            outputs, recurrent, _ = forward(network, weights, seen, recurrent, (t == 0)[None])
            action = clip_action(act(outputs, key)[0][0], env.action_space)
            after = step(root, t, before.state, action, params)
            actions, rewards = actions.at[t].set(action), rewards.at[t].set(after.reward)
            return t + 1, after, recurrent, actions, rewards

        def goes_on(carried: Any) -> jax.Array:
            t, before, *_ = carried
            return (t < max_steps) & ~(before.terminated | before.truncated)

        action = jnp.zeros(env.action_space.shape, env.action_space.dtype)
        first = make_initial_step(env, root, state, seen, action, params)
        actions = jnp.zeros((max_steps, *action.shape), action.dtype)
        rewards = jnp.zeros(max_steps, jnp.float32)
        start = t, first, init_recurrent_state(network, 1), actions, rewards
        length, last, _, actions, rewards = lax.while_loop(goes_on, body, start)
        ended = last.terminated, last.truncated, last.info.get("lesson", jnp.int32(0))
        return length, actions, rewards, ended, keys_to_data(last.state)

    def played(state: TrainState, seed: int, number: int) -> Replay:
        weights = jax.tree.map(_local, weights_of(state))
        root = derive_episode_key(seed, number)
        found = play(weights, params, root, 0, *begun(jax.random.fold_in(root, RESET), params))
        length, actions, rewards, (terminated, truncated, drawn), last = jax.device_get(found)
        replay = Replay(
            environment=env.name,
            lesson=env.lessons[drawn] if env.lessons else None,
            params=tuple(np.ravel(leaf) for leaf in jax.tree.leaves(params)),
            seed=seed,
            number=number,
            greedy=greedy,
            epoch=int(np.asarray(state.epoch)),
            step=int(np.asarray(state.step)),
            actions=actions[:length],
            rewards=rewards[:length],
            terminated=bool(terminated),
            truncated=bool(truncated),
            checksum=checksum_of(last),
        )
        _check_finite(replay)
        return replay

    return played


def params_of(env: Environment, lesson: str | None) -> PyTree:
    """Give what an environment is played with: its params, or those that draw one lesson alone.

    Raises:
        ValueError: there is no such lesson.
    """
    if lesson is None:
        params = env.params
    elif lesson in env.lessons:
        params = jnp.zeros(len(env.lessons)).at[env.lessons.index(lesson)].set(1.0)
    else:
        there = suggest_and_list(
            lesson, env.lessons or ["none, so leave it out; other params: env._replace"]
        )
        raise ValueError(f"environment {env.name!r} has no lesson {lesson!r}{there}")
    env.check(params)
    return params


def _check_finite(replay: Replay) -> None:
    columns = {"reward": replay.rewards[:, None], "action": replay.actions}
    for name, values in columns.items():
        rows = values.reshape(len(values), -1)
        if (broken := ~np.isfinite(rows).all(axis=1)).any():
            at = int(np.argmax(broken))
            raise ValueError(
                f"a replay needs numbers that are finite; the {name} at step {at} of episode "
                f"{replay.number} in {replay.environment!r}, played by the policy of epoch "
                f"{replay.epoch}, is {np.squeeze(rows[at]).tolist()}"
            )


def _local(leaf: Any) -> Any:
    """Give an array that this process can compute with alone."""
    spread = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    return np.asarray(leaf) if spread else leaf
