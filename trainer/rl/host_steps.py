"""Playing in environments on the host: the policy on the device, one dispatch a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from trainer.rl.environments.environment import Box, Discrete
from trainer.rl.environments.from_gymnasium import HostEnvironments
from trainer.rl.policies import PolicyWeights, act, clip_action, forward
from trainer.rl.rollouts import Experience
from trainer.state import PyTree

PolicyStep = Callable[..., tuple[jax.Array, jax.Array, jax.Array, jax.Array, PyTree]]


class HostRolloutState(NamedTuple):
    """Where the environments are between two rollouts; it is kept on the host, and not saved."""

    epoch: int
    """The one that goes on from here."""
    taken: int
    """Of the environments: whether somebody else stepped them since."""
    observation: PyTree
    """What the policy sees next, `[env, ...]`."""
    first: np.ndarray
    """bool `[env]`: that observation begins an episode."""
    recurrent: PyTree
    """The policy's memory, `[env, ...]`; () where it has none."""
    episode_return: np.ndarray
    """float32 `[env]`: of the running episodes so far."""
    episode_length: np.ndarray
    """int32 `[env]`: their steps so far."""


class EpisodeTotals(NamedTuple):
    """What the running episodes came to with each step, `[time, env]`."""

    episode_return: Any
    episode_length: Any


def collect_on_host(
    look: PolicyStep,
    weights: PolicyWeights,
    envs: HostEnvironments,
    standing: HostRolloutState,
    key: jax.Array,
    *,
    steps: int,
) -> tuple[HostRolloutState, Experience, EpisodeTotals]:
    """Play some steps in all environments, as `rollouts.play` does on the device.

    Args:
        look: what the policy does, as `make_policy_step` makes it.
        weights: of its network.
        envs: to play in.
        standing: where they are.
        key: of all that the policy draws at random.
        steps: of each environment.

    Returns:
        Where the environments are after it, and numpy arrays `[time, env, ...]`.

    Raises:
        ValueError: a reward or an observation is not finite.
    """
    observation, first, recurrent = standing.observation, standing.first, standing.recurrent
    sums, lengths = standing.episode_return, standing.episode_length
    no_first = np.zeros(len(envs), bool)
    rows, totals = [], []
    _refuse_broken(envs, observation, None, 0)
    for t in range(steps):
        *looked, recurrent = look(weights, observation, recurrent, first, key, np.int32(t))
        action, given, log_prob, value = jax.device_get(looked)
        step = envs.step(given)
        seen = step.reward, step.final_observation, step.observation
        _refuse_broken(envs, seen, given, t)
        final_value = np.zeros_like(value)
        if step.truncated.any():
            *_, final_value, _ = look(
                weights, step.final_observation, recurrent, no_first, key, np.int32(t)
            )
        told = action, log_prob, value, step.reward, step.terminated, step.truncated
        rows.append((observation, *told, first, np.asarray(final_value)))
        sums, lengths = sums + step.reward, lengths + 1
        totals.append((sums, lengths))
        observation, first = step.observation, step.terminated | step.truncated
        sums, lengths = np.where(first, np.float32(0), sums), np.where(first, 0, lengths)
    *_, last, _ = look(weights, observation, recurrent, first, key, np.int32(steps))
    *whole, final_value = _stacked(rows)
    values, truncated = whole[3], whole[6]
    following = np.concatenate([values[1:], np.asarray(last)[None]])
    next_value = np.where(truncated, final_value, following)
    experience = Experience._make((*whole, next_value, standing.recurrent))
    after = standing.epoch + 1, envs.taken, observation, first, recurrent, sums, lengths
    return HostRolloutState(*after), experience, EpisodeTotals(*_stacked(totals))


def make_policy_step(network: Any, action_space: Discrete | Box) -> PolicyStep:
    """Make the function that a step dispatches: what a policy does, and what it makes of it.

    It is `(weights, observation, recurrent, first, key, step) -> (action as drawn, action within
    bounds, its log probability, value, memory)`.
    """

    @jax.jit
    def look(
        weights: PolicyWeights,
        observation: PyTree,
        recurrent: PyTree,
        first: jax.Array,
        key: jax.Array,
        step: jax.Array,
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, PyTree]:
        outputs, recurrent, _ = forward(network, weights, observation, recurrent, first)
        action, log_prob = act(outputs, jax.random.fold_in(key, step))
        return action, clip_action(action, action_space), log_prob, outputs["value"], recurrent

    return look


def _stacked(rows: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *arrays: np.stack(arrays), *rows)


def _refuse_broken(envs: HostEnvironments, seen: PyTree, given: np.ndarray | None, t: int) -> None:
    """Name the first environment that gave what is not finite, before anything is learnt of it.

    Args:
        envs: that gave it.
        seen: rewards and observations, `[env, ...]` each.
        given: the actions before, `[env, ...]`; None where an episode began.
        t: the step of the rollout.
    """
    for array in jax.tree.leaves(seen):
        if array.dtype.kind != "f" or np.isfinite(array).all():
            continue
        index = int(np.argmin(np.isfinite(array).reshape(len(envs), -1).all(axis=1)))
        action = "" if given is None else f", for the action {given[index].tolist()}"
        raise ValueError(
            f"environment {index} of {len(envs)} ({envs.name!r}) gave a reward or an observation "
            f"that is not finite at step {t} of the rollout{action}: look at its step and its reset"
        )
