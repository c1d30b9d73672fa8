"""Evaluation of policies: whole episodes, each counted once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from trainer.checks.suggestions import suggest_and_list
from trainer.phases.phase import Phase
from trainer.rl.environments.environment import Box, Environment
from trainer.rl.environments.wrappers import check_no_auto_reset
from trainer.rl.policies import (
    act,
    check_policy,
    clip_action,
    forward,
    init_recurrent_state,
    weights_of,
)
from trainer.rl.rollouts import finalize_rollout_metrics, is_finite, sum_and_count
from trainer.state import PyTree, TrainState

CURRENT = "current"
"""Lessons drawn as training draws them."""


class EpisodeBatch(NamedTuple):
    """Episodes that are being played, `[episode]` each."""

    state: PyTree
    observation: PyTree
    recurrent: PyTree
    total: jax.Array
    """float32: rewards so far."""
    length: jax.Array
    """int32: steps so far."""
    over: jax.Array
    """bool: the episode has ended; what comes after is not counted."""
    lesson: jax.Array
    """int32: which it is of; 0 where there are none."""
    broken: jax.Array
    """int32: the step at which something was first not finite, -1 while there was none."""


def evaluation_of(
    network: Any,
    env: Environment,
    *,
    episodes: int = 16,
    lessons: Sequence[str] | str | None = None,
    greedy: bool = True,
    max_steps: int = 1000,
    name: str = "val",
) -> Phase:
    """Make a phase that plays whole episodes with the state's policy, and leaves the state alone.

    `hooks.evaluate` runs it between epochs, `trainer.evaluate` once, and `fit` over it alone is an
    evaluator. It reports the means of `return` and `length`, and `unfinished`, the share of
    episodes that `max_steps` cut off (they count as far as they went); with lessons also
    `return/<lesson>`. Which episodes are played follows from the state's key, so each epoch has
    others.

    Args:
        network: of the policy, as given to `ppo`.
        env: to play in, without wrappers that reset it.
        episodes: to play, of each lesson; all at once.
        lessons: names of those to play, all of `env.lessons` if None; `"current"` draws them as
            training does, by `state.carry["lessons"]`, and plays `episodes` in all.
        greedy: choose the likeliest action; False draws it by the policy's chances.
        max_steps: after which an episode is left.
        name: of the phase, the prefix of its metrics.

    Raises:
        TypeError: the environment steps on the host.
        ValueError: the network does not fit the environment, which refuses its params or resets by
            itself, there is no such lesson, or a setting is below 1; when it plays, a reward or an
            observation is not finite: environment and step are named.
    """
    for what, value in (("episodes", episodes), ("max_steps", max_steps)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(
                f"evaluation_of: {what} must be at least 1, a whole number; got {value!r}"
            )
    if not isinstance(env, Environment):
        raise TypeError(
            "evaluation_of plays on the device, in a trainer.rl.environments.Environment; got "
            f"{type(env).__name__}, whose episodes `rollout` measures where they step on the host"
        )
    check_policy(network, env)
    env.check(env.params)
    check_no_auto_reset(env, env.params, "an evaluation")
    current, chosen = _chosen(env, lessons)
    count = episodes if current or not chosen else episodes * len(chosen)
    played = np.repeat([env.lessons.index(lesson) for lesson in chosen], episodes)

    def params_of(state: TrainState) -> PyTree:
        if chosen and not current:
            return jax.nn.one_hot(played, len(env.lessons))
        if current and "lessons" not in state.carry:
            raise ValueError(
                f"phase {name!r} draws lessons by state.carry['lessons'], which is not there: "
                "evaluate a state that trainer.rl.ppo made, or name the lessons"
            )
        params = state.carry["lessons"] if current else env.params
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *jnp.shape(x))), params)

    def run(state: TrainState, data: Any) -> tuple[TrainState, None, dict[str, Any]]:
        course = play_episodes(
            *(network, env, state, params_of(state), state.key(name)),
            count=count,
            greedy=greedy,
            max_steps=max_steps,
        )
        every = jnp.ones(count, bool)
        unfinished = (~course.over).astype(jnp.float32)
        told = {"return": course.total, "length": course.length, "unfinished": unfinished}
        metrics = {**sum_and_count(every, told, ""), **_soundness(course.broken)}
        for lesson in chosen:
            here = course.lesson == env.lessons.index(lesson)
            metrics |= sum_and_count(here, {"return": course.total}, f"/{lesson}")
            metrics[f"episodes/{lesson}"] = jnp.sum(here, dtype=jnp.int32)
        return state, None, metrics

    def finalize(means: Mapping[str, float]) -> dict[str, float | None]:
        if means["_sound"] < 1:
            acted = isinstance(env.action_space, Box)
            raise ValueError(
                f"environment {-int(means['_sound'])} of {count} ({env.name!r}) gave a reward or "
                f"an observation that is not finite at step {int(means['_step'])} of its episode: "
                "look at its step function and at its params"
                + (", and at whether the policy's actions are finite" if acted else "")
            )
        found = finalize_rollout_metrics(means, env.name, count)
        return {**found, "_step": None, **{f"episodes/{lesson}": None for lesson in chosen}}

    return Phase(name, run, updates_state=False, finalize=finalize)


def play_episodes(
    network: Any,
    env: Environment,
    state: TrainState,
    params: PyTree,
    key: jax.Array,
    *,
    count: int,
    greedy: bool,
    max_steps: int,
) -> EpisodeBatch:
    """Play episodes side by side until all are over, or `max_steps` are taken.

    Args:
        params: of the environment for each episode, `[episode, ...]`.
    """
    weights = weights_of(state)
    reset_key, play_key = jax.random.split(key)
    begun, observation = jax.vmap(env.reset)(jax.random.split(reset_key, count), params)
    first = EpisodeBatch(
        state=begun,
        observation=observation,
        recurrent=init_recurrent_state(network, count),
        total=jnp.zeros(count),
        length=jnp.zeros(count, jnp.int32),
        over=jnp.zeros(count, bool),
        lesson=jnp.zeros(count, jnp.int32),
        broken=jnp.where(is_finite(jnp.zeros(count), observation), -1, 0).astype(jnp.int32),
    )

    def body(carried: tuple[jax.Array, EpisodeBatch]) -> tuple[jax.Array, EpisodeBatch]:
        t, course = carried
        act_key, env_key = jax.random.split(jax.random.fold_in(play_key, t))
        beginning = jnp.broadcast_to(t == 0, (count,))
        outputs, recurrent, _ = forward(
            network, weights, course.observation, course.recurrent, beginning
        )
        action, _ = act(outputs, None if greedy else act_key)
        action = clip_action(action, env.action_space)
        keys = jax.random.split(env_key, count)
        step = jax.vmap(env.step)(keys, course.state, action, params)
        wrong = ~course.over & ~is_finite(step.reward, step.observation)
        return t + 1, EpisodeBatch(
            state=step.state,
            observation=step.observation,
            recurrent=recurrent,
            total=course.total + jnp.where(course.over, 0.0, step.reward),
            length=course.length + ~course.over,
            over=course.over | step.terminated | step.truncated,
            lesson=step.info.get("lesson", course.lesson),
            broken=jnp.where(wrong & (course.broken < 0), t, course.broken),
        )

    def going(carried: tuple[jax.Array, EpisodeBatch]) -> jax.Array:
        t, course = carried
        return (t < max_steps) & ~jnp.all(course.over)

    return lax.while_loop(going, body, (jnp.int32(0), first))[1]


def _soundness(broken: jax.Array) -> dict[str, jax.Array]:
    """Tell of the earliest that broke: `_sound` is 1, or minus its place; `_step` is its step."""
    when = jnp.where(broken < 0, jnp.iinfo(jnp.int32).max, broken)
    place = jnp.argmin(when)
    return {"_sound": jnp.where(broken[place] < 0, 1, -place), "_step": broken[place]}


def _chosen(env: Environment, lessons: Sequence[str] | str | None) -> tuple[bool, tuple[str, ...]]:
    """Give whether lessons are drawn as in training, and those that are reported."""
    if lessons is None or (lessons == CURRENT and env.lessons):
        return lessons == CURRENT, env.lessons
    named = (lessons,) if isinstance(lessons, str) else tuple(lessons)
    if not named or (unknown := [lesson for lesson in named if lesson not in env.lessons]):
        there = env.lessons or ["none: trainer.rl.lessons makes some"]
        raise ValueError(
            f"evaluation_of: environment {env.name!r} has no lessons {unknown if named else named}"
            f"{suggest_and_list(next(iter(named), ''), there)}"
        )
    return False, named
