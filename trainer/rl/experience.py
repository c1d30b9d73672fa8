"""Experience: what a rollout collects, its metrics, and diagnostics of non-finite numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from trainer.phases.reductions import WEIGHT
from trainer.state import PyTree

PREFIX = "diagnostics/"
"""Prefix of the diagnostics among a phase's metrics; they are never reported."""


class RolloutState(NamedTuple):
    """Where the environments are between two rollouts, at `state.carry["environment"]`."""

    state: PyTree
    """State of the environments, `[env, ...]`."""
    observation: PyTree
    """The policy's next observation, `[env, ...]`."""
    first: jax.Array
    """bool `[env]`: the observation is the first of an episode."""
    recurrent: PyTree
    """Recurrent state of the policy, `[env, ...]`; () if it has none."""


class Experience(NamedTuple):
    """The output of a rollout, from which the update learns."""

    observation: PyTree
    """`[time, env, ...]`, as the environments returned it, not normalized."""
    action: jax.Array
    """`[time, env, ...]`, as sampled, not clipped."""
    log_prob: jax.Array
    """float32 `[time, env]`: log probability of the action under the policy that sampled it."""
    value: jax.Array
    """float32 `[time, env]`: the policy's value of the observation."""
    reward: jax.Array
    """float32 `[time, env]`."""
    terminated: jax.Array
    """bool `[time, env]`: the step ended the episode; nothing follows it."""
    truncated: jax.Array
    """bool `[time, env]`: the step cut the episode off, for example by a time limit."""
    first: jax.Array
    """bool `[time, env]`: the observation is the first of an episode."""
    next_value: jax.Array
    """float32 `[time, env]`: value of the observation after the step, before any reset."""
    recurrent: PyTree
    """Recurrent state of the policy before the first step, `[env, ...]`; () if it has none."""


class StepStatistics(NamedTuple):
    """What is measured at each step, `[time, env]` each."""

    episode_return: jax.Array
    """float32: sum of the episode's rewards, this step's included."""
    episode_length: jax.Array
    """int32: steps of the episode, this one included."""
    broken: jax.Array
    """bool: a reward or an observation is not finite."""
    lesson: jax.Array
    """int32: the episode's lesson; 0 if the environment has no lessons."""


def diagnose(experience: Experience, broken: jax.Array) -> dict[str, jax.Array]:
    """Find the first step that is broken, bool `[time, env]`, for `finalize` to report.

    Returns:
        `finite`, 1 if none is; `envs`, how many there are; `env` and `step`, its indices;
        `from_policy`, 1 if the policy's action was not finite although its observation was: int32
        `()` each. The last three have a weight of 0 if none is broken.
    """
    index = jnp.argmax(broken)
    step, env = jnp.divmod(index, broken.shape[1])
    action, observation = jax.tree.map(
        lambda x: x.reshape(broken.size, -1)[index], (experience.action, experience.observation)
    )
    none = jnp.zeros(())
    from_policy = is_finite(none, observation) & ~is_finite(none, action)
    found = {"env": env, "step": step, "from_policy": from_policy.astype(jnp.int32)}
    weight = jnp.any(broken).astype(jnp.int32)
    weights = {f"{PREFIX}{name}{WEIGHT}": weight for name in found}
    diagnostics = {f"{PREFIX}{name}": value for name, value in found.items()}
    every = {f"{PREFIX}finite": 1 - weight, f"{PREFIX}envs": jnp.int32(broken.shape[1])}
    return every | diagnostics | weights


def reduce_rollouts(lessons: Sequence[str]) -> dict[str, str]:
    """Return how metrics of several rollouts become one: counts are added up.

    Of the diagnostics those of the first rollout that is broken count.
    """
    counts = dict.fromkeys(["episodes", "steps", *(f"episodes/{x}" for x in lessons)], "sum")
    return counts | {f"{PREFIX}{name}": "first" for name in ("env", "step", "from_policy")}


def compute_rollout_metrics(
    experience: Experience, statistics: StepStatistics, lessons: Sequence[str]
) -> dict[str, Any]:
    """Return the metrics of a rollout, and its diagnostics."""
    ended = experience.terminated | experience.truncated
    totals = {"return": statistics.episode_return, "length": statistics.episode_length}
    indices = {name: index for index, name in enumerate(lessons)}
    return {
        "episodes": jnp.sum(ended, dtype=jnp.int32),
        "steps": jnp.int32(ended.size),
        **diagnose(experience, statistics.broken),
        **measure_episodes(ended, totals, statistics.lesson, indices),
    }


def measure_episodes(
    where: jax.Array, totals: Mapping[str, jax.Array], lesson: jax.Array, lessons: Mapping[str, int]
) -> dict[str, Any]:
    """Return metrics of the episodes where a mask holds, over all and by lesson.

    Args:
        where: bool, of any shape, that of all arrays.
        totals: of the episodes, by metric; those by lesson are of `return` only.
        lesson: index of each episode's lesson.
        lessons: indices of the lessons to report, by name.

    Returns:
        Pairs (sum, count), which a phase divides once, and the count of each lesson's episodes.
    """

    def add_up(where: jax.Array, name: str) -> tuple[jax.Array, jax.Array]:
        return jnp.sum(totals[name], where=where), jnp.sum(where, dtype=jnp.int32)

    metrics: dict[str, Any] = {name: add_up(where, name) for name in totals}
    for name, index in lessons.items():
        metrics[f"return/{name}"] = add_up(where & (lesson == index), "return")
        metrics[f"episodes/{name}"] = metrics[f"return/{name}"][1]
    return metrics


def finalize_rollout_metrics(means: Mapping[str, float], env: str) -> dict[str, float | None]:
    """Check that all numbers are finite, and leave out what is not reported.

    Raises:
        ValueError: a number is not finite; the error names the environment and the step.
    """
    if means[f"{PREFIX}finite"] < 1:
        index, envs, step = (int(means[f"{PREFIX}{name}"]) for name in ("env", "envs", "step"))
        if means[f"{PREFIX}from_policy"]:
            raise ValueError(
                f"the policy gave environment {index} of {envs} ({env!r}) an action that is not "
                f"finite at step {step} of the rollout: its parameters went wrong in the updates "
                "before, which stop_on_nan() would have found"
            )
        raise ValueError(
            f"environment {index} of {envs} ({env!r}) returned a reward or an observation that is "
            f"not finite at step {step} of the rollout: look at its step function, its reset and "
            "its params"
        )
    return omit_unreported(means)


def omit_unreported(means: Mapping[str, float]) -> dict[str, float | None]:
    """Return None for the diagnostics and for means over no episode, which leaves them out."""
    omitted: dict[str, float | None] = {}
    for name, count in means.items():
        kind, _, lesson = name.partition("/")
        if name.startswith(PREFIX):
            omitted[name] = None
        elif kind == "episodes" and not count:
            omitted |= {f"return/{lesson}": None} if lesson else {"return": None, "length": None}
    return omitted


def is_finite(reward: jax.Array, observation: PyTree) -> jax.Array:
    """Return, for each reward `[..., env]`, whether it and its observation are finite."""
    arrays = reward, *jax.tree.leaves(observation)
    finite = [jnp.isfinite(x).reshape(*reward.shape, -1).all(axis=-1) for x in arrays]
    return jnp.all(jnp.stack(finite), axis=0)
