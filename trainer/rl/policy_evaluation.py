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
from trainer.rl import policies
from trainer.rl.environments.environment import Box, Environment
from trainer.rl.environments.wrappers import check_no_auto_reset
from trainer.rl.experience import PREFIX, is_finite, measure_episodes, omit_unreported
from trainer.state import PyTree, TrainState

CURRENT = "current"
"""Lessons drawn as training draws them."""


class EpisodeBatch(NamedTuple):
    """Episodes that run side by side, `[episode]` each."""

    state: PyTree
    observation: PyTree
    recurrent: PyTree
    total: jax.Array
    """float32: sum of the rewards so far."""
    length: jax.Array
    """int32: steps so far."""
    ended: jax.Array
    """bool: the episode has ended; later steps are not counted."""
    lesson: jax.Array
    """int32: the episode's lesson; 0 if the environment has none."""
    broken: jax.Array
    """int32: the first step with a number that is not finite, -1 if there is none."""


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
    """Build a phase that runs whole episodes with the state's policy and keeps the state.

    `hooks.evaluate` runs it between epochs, `trainer.evaluate` once, and `fit` over it alone is an
    evaluator. It reports the means of `return` and `length`, and `unfinished`, the share of
    episodes that `max_steps` cut off (they count as far as they went); with lessons also
    `return/<lesson>`. The episodes depend on the state's key, so each epoch has others.

    Args:
        network: of the policy, as for `ppo`.
        env: to act in, without wrappers that reset it.
        episodes: number of episodes of each lesson; all run at once.
        lessons: names of the lessons, all of `env.lessons` if None; `"current"` draws them as
            training does, by `state.carry["lessons"]`, and runs `episodes` in all.
        greedy: choose the likeliest action; False samples it.
        max_steps: steps after which an episode is cut off.
        name: of the phase, the prefix of its metrics.

    Raises:
        TypeError: the environment steps on the host.
        ValueError: the network does not fit the environment, the environment refuses its params or
            resets by itself, there is no such lesson, or a setting is below 1; during a run, a
            reward or an observation is not finite: the error names environment and step.
    """
    for what, value in (("episodes", episodes), ("max_steps", max_steps)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(
                f"evaluation_of: {what} must be at least 1, a whole number; got {value!r}"
            )
    if not isinstance(env, Environment):
        raise TypeError(
            "evaluation_of runs on the device, in a trainer.rl.environments.Environment; got "
            f"{type(env).__name__}, whose episodes `rollout` measures if they step on the host"
        )
    policies.check_policy(network, env)
    env.check(env.params)
    check_no_auto_reset(env, env.params, "an evaluation")
    current, names = _choose_lessons(env, lessons)
    chosen = {lesson: env.lessons.index(lesson) for lesson in names}
    count = episodes if current or not chosen else episodes * len(chosen)
    lesson_of = np.repeat(list(chosen.values()), episodes)

    def params_of(state: TrainState) -> PyTree:
        if chosen and not current:
            return jax.nn.one_hot(lesson_of, len(env.lessons))
        if current and "lessons" not in state.carry:
            raise ValueError(
                f"phase {name!r} draws lessons by state.carry['lessons'], which is not there: "
                "evaluate a state that trainer.rl.ppo made, or name the lessons"
            )
        params = state.carry["lessons"] if current else env.params
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *jnp.shape(x))), params)

    def run(state: TrainState, data: Any) -> tuple[TrainState, None, dict[str, Any]]:
        batch = run_episodes(
            *(network, env, state, params_of(state), state.key(name)),
            count=count,
            greedy=greedy,
            max_steps=max_steps,
        )
        unfinished = (~batch.ended).astype(jnp.float32)
        totals = {"return": batch.total, "length": batch.length, "unfinished": unfinished}
        metrics = measure_episodes(jnp.ones(count, bool), totals, batch.lesson, chosen)
        when = jnp.where(batch.broken < 0, max_steps, batch.broken)  # the earliest is reported
        metrics[f"{PREFIX}finite"] = jnp.all(batch.broken < 0).astype(jnp.int32)
        metrics[f"{PREFIX}env"], metrics[f"{PREFIX}step"] = jnp.argmin(when), jnp.min(when)
        return state, None, metrics

    def finalize(means: Mapping[str, float]) -> dict[str, float | None]:
        if not means[f"{PREFIX}finite"]:
            index, step = int(means[f"{PREFIX}env"]), int(means[f"{PREFIX}step"])
            numbers = isinstance(env.action_space, Box)
            raise ValueError(
                f"environment {index} of {count} ({env.name!r}) returned a reward or an "
                f"observation that is not finite at step {step} of its episode: look at its step "
                "function and at its params"
                + (", and at whether the policy's actions are finite" if numbers else "")
            )
        return omit_unreported(means) | {f"episodes/{lesson}": None for lesson in chosen}

    return Phase(name, run, updates_state=False, finalize=finalize)


def run_episodes(
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
    """Run episodes side by side until all have ended, or have taken `max_steps`.

    Args:
        params: of the environment for each episode, `[episode, ...]`.
    """
    weights = policies.weights_of(state)
    reset_key, run_key = jax.random.split(key)
    begun, observation = jax.vmap(env.reset)(jax.random.split(reset_key, count), params)
    start = EpisodeBatch(
        state=begun,
        observation=observation,
        recurrent=policies.init_recurrent_state(network, count),
        total=jnp.zeros(count),
        length=jnp.zeros(count, jnp.int32),
        ended=jnp.zeros(count, bool),
        lesson=jnp.zeros(count, jnp.int32),
        broken=jnp.where(is_finite(jnp.zeros(count), observation), -1, 0).astype(jnp.int32),
    )

    def body(carried: tuple[jax.Array, EpisodeBatch]) -> tuple[jax.Array, EpisodeBatch]:
        t, batch = carried
        act_key, env_key = jax.random.split(jax.random.fold_in(run_key, t))
        first = jnp.broadcast_to(t == 0, (count,))
        outputs, recurrent, _ = policies.forward(
            network, weights, batch.observation, batch.recurrent, first
        )
        action, _ = policies.act(outputs, None if greedy else act_key)
        action = policies.clip_action(action, env.action_space)
        keys = jax.random.split(env_key, count)
        step = jax.vmap(env.step)(keys, batch.state, action, params)
        broken = ~batch.ended & ~is_finite(step.reward, step.observation)
        return t + 1, EpisodeBatch(
            state=step.state,
            observation=step.observation,
            recurrent=recurrent,
            total=batch.total + jnp.where(batch.ended, 0.0, step.reward),
            length=batch.length + ~batch.ended,
            ended=batch.ended | step.terminated | step.truncated,
            lesson=step.info.get("lesson", batch.lesson),
            broken=jnp.where(broken & (batch.broken < 0), t, batch.broken),
        )

    def running(carried: tuple[jax.Array, EpisodeBatch]) -> jax.Array:
        t, batch = carried
        return (t < max_steps) & ~jnp.all(batch.ended)

    return lax.while_loop(running, body, (jnp.int32(0), start))[1]


def _choose_lessons(
    env: Environment, lessons: Sequence[str] | str | None
) -> tuple[bool, tuple[str, ...]]:
    """Return whether lessons are drawn as in training, and those that are reported."""
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
