"""Experience: what a rollout collects, its metrics, and diagnostics of non-finite numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

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


class Diagnostics(NamedTuple):
    """Where a number first was not finite: scalars `()` on the device, floats on the host."""

    finite: Any
    """1 if all numbers are finite, else 0."""
    env: Any
    """Index of the environment, or of the episode, whose number is not."""
    step: Any
    """Index of the step at which it is not."""
    from_policy: Any
    """1 if the policy's action was not finite although its observation was, else 0."""


def pack_diagnostics(diagnostics: Diagnostics) -> dict[str, jax.Array]:
    """Return diagnostics as metrics of a phase, for its `finalize` to read."""
    return {f"{PREFIX}{name}": value for name, value in diagnostics._asdict().items()}


def read_diagnostics(means: Mapping[str, float]) -> Diagnostics:
    """Return the diagnostics that `pack_diagnostics` put among the metrics."""
    return Diagnostics._make(means[PREFIX + name] for name in Diagnostics._fields)


def diagnose(experience: Experience, broken: jax.Array) -> Diagnostics:
    """Find the first step that is broken, bool `[time, env]`."""
    index = jnp.argmax(broken)
    step, env = jnp.divmod(index, broken.shape[1])
    action, observation = jax.tree.map(
        lambda x: x.reshape(broken.size, -1)[index], (experience.action, experience.observation)
    )
    none = jnp.zeros(())
    from_policy = is_finite(none, observation) & ~is_finite(none, action)
    finite = ~jnp.any(broken)
    return Diagnostics(finite.astype(jnp.int32), env, step, from_policy.astype(jnp.int32))


def compute_rollout_metrics(
    experience: Experience, statistics: StepStatistics, lessons: Sequence[str]
) -> dict[str, Any]:
    """Return the metrics of a rollout, and its diagnostics."""
    ended = experience.terminated | experience.truncated
    totals = {"return": statistics.episode_return, "length": statistics.episode_length}
    metrics = {
        "episodes": jnp.sum(ended, dtype=jnp.int32),
        "steps": jnp.int32(ended.size),
        **pack_diagnostics(diagnose(experience, statistics.broken)),
        **sum_and_count(ended, totals, ""),
    }
    for index, lesson in enumerate(lessons):
        here = ended & (statistics.lesson == index)
        metrics |= sum_and_count(here, {"return": statistics.episode_return}, f"/{lesson}")
        metrics[f"episodes/{lesson}"] = jnp.sum(here, dtype=jnp.int32)
    return metrics


def finalize_rollout_metrics(
    means: Mapping[str, float], env: str, envs: int
) -> dict[str, float | None]:
    """Check that all numbers are finite, and leave out what is not reported.

    Raises:
        ValueError: a number is not finite; the error names the environment and the step.
    """
    found = read_diagnostics(means)
    if not found.finite:
        index, step = int(found.env), int(found.step)
        if found.from_policy:
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


def sum_and_count(where: jax.Array, values: Mapping[str, jax.Array], suffix: str) -> dict[str, Any]:
    """Return pairs (sum, count) of the values where a mask holds; a phase divides them once."""
    count = jnp.sum(where, dtype=jnp.int32)
    return {f"{k}{suffix}": (jnp.sum(x, where=where), count) for k, x in values.items()}
