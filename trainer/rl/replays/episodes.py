"""Run one episode with a state's policy, and return it as a replay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from trainer.checks.suggestions import suggest_and_list
from trainer.rl import policies
from trainer.rl.environments.environment import Environment
from trainer.rl.environments.wrappers import check_no_auto_reset
from trainer.rl.replays.isolated_steps import STEP, isolate_step, make_initial_step
from trainer.rl.replays.replay import RESET, Replay, checksum_of, derive_episode_key, keys_to_data
from trainer.state import PyTree, TrainState, read_epoch

ACT = STEP + 1
"""Folded, with the number of the step, into an episode's key to make the key of an action."""


def make_episode_runner(
    network: Any,
    env: Environment,
    *,
    lesson: str | None = None,
    greedy: bool = True,
    max_steps: int = 1000,
) -> Callable[[TrainState, int, int], Replay]:
    """Build a function `(state, seed, number) -> Replay` that runs an episode with its policy.

    It compiles once, and depends only on the state's weights and its arguments: not on the state's
    key, nor on where training's environments are.

    Args:
        network: of the policy, see `trainer.rl.policies.forward`.
        env: to act in, without wrappers that reset it.
        lesson: one of `env.lessons`; drawn by `env.params` if None.
        greedy: choose the likeliest action; False samples it.
        max_steps: steps after which an episode is cut off.

    Raises:
        TypeError: the environment does not consist of pure functions.
        ValueError: the network does not fit the environment, the environment resets by itself or
            has no such lesson, or `max_steps` is below 1; during an episode, an action or a reward
            is not finite.
    """
    if not isinstance(env, Environment):
        raise TypeError(f"a replay needs an Environment of pure functions; got {env!r:.100}")
    policies.check_policy(network, env)
    if isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 1:
        raise ValueError(f"max_steps must be a whole number of at least 1; got {max_steps!r}")
    params = params_of(env, lesson)
    check_no_auto_reset(env, params, "a replay")
    reset, step = jax.jit(env.reset), isolate_step(env)

    @jax.jit
    def run_steps(weights: Any, params: PyTree, root: jax.Array, t: int, begun: Any) -> Any:
        def body(carried: Any) -> Any:
            t, before, recurrent, actions, rewards = carried
            key = None if greedy else jax.random.fold_in(jax.random.fold_in(root, ACT), t)
            batch = jax.tree.map(lambda x: x[None], before.observation)
            first = (t == 0)[None]
            outputs, recurrent, _ = policies.forward(network, weights, batch, recurrent, first)
            action = policies.clip_action(policies.act(outputs, key)[0][0], env.action_space)
            after = step(root, t, before.state, action, params)
            actions, rewards = actions.at[t].set(action), rewards.at[t].set(after.reward)
            return t + 1, after, recurrent, actions, rewards

        def running(carried: Any) -> jax.Array:
            t, before, *_ = carried
            return (t < max_steps) & ~(before.terminated | before.truncated)

        action = jnp.zeros(env.action_space.shape, env.action_space.dtype)
        first = make_initial_step(env, root, begun, action, params)
        actions = jnp.zeros((max_steps, *action.shape), action.dtype)
        rewards = jnp.zeros(max_steps, jnp.float32)
        start = t, first, policies.init_recurrent_state(network, 1), actions, rewards
        length, last, _, actions, rewards = lax.while_loop(running, body, start)
        ended = last.terminated, last.truncated, last.info.get("lesson", jnp.int32(0))
        return length, actions, rewards, ended, keys_to_data(last.state)

    def run_episode(state: TrainState, seed: int, number: int) -> Replay:
        weights = jax.tree.map(_to_local, policies.weights_of(state))
        root = derive_episode_key(seed, number)
        begun = reset(jax.random.fold_in(root, RESET), params)
        results = run_steps(weights, params, root, 0, begun)
        length, actions, rewards, (terminated, truncated, drawn), last = jax.device_get(results)
        replay = Replay(
            environment=env.name,
            lesson=env.lessons[drawn] if env.lessons else None,
            params=tuple(np.ravel(leaf) for leaf in jax.tree.leaves(params)),
            seed=seed,
            number=number,
            greedy=greedy,
            epoch=read_epoch(state),
            step=int(np.asarray(state.step)),
            actions=actions[:length],
            rewards=rewards[:length],
            terminated=bool(terminated),
            truncated=bool(truncated),
            checksum=checksum_of(last),
        )
        _check_finite(replay)
        return replay

    return run_episode


def params_of(env: Environment, lesson: str | None) -> PyTree:
    """Return the params of an episode: the environment's, or those that draw only one lesson.

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
    for name, values in {"reward": replay.rewards, "action": replay.actions}.items():
        rows = values.reshape(len(values), -1)
        if (broken := ~np.isfinite(rows).all(axis=1)).any():
            at = int(np.argmax(broken))
            raise ValueError(
                f"a replay needs numbers that are finite; the {name} at step {at} of episode "
                f"{replay.number} in {replay.environment!r}, with the policy of epoch "
                f"{replay.epoch}, is {np.squeeze(rows[at]).tolist()}"
            )


def _to_local(leaf: Any) -> Any:
    """Return an array that this process can compute with alone."""
    sharded = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    return np.asarray(leaf) if sharded else leaf
