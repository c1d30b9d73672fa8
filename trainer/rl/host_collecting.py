"""Collect experience in environments on the host: the policy on the device, one dispatch a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from trainer.rl.environments.environment import Box, Discrete
from trainer.rl.environments.from_gymnasium import HostEnvironments
from trainer.rl.experience import Experience, StepStatistics
from trainer.rl.policies import PolicyWeights, act, clip_action, forward
from trainer.state import PyTree

PolicyStep = Callable[..., tuple[jax.Array, jax.Array, jax.Array, jax.Array, PyTree]]


class HostRolloutState(NamedTuple):
    """Where the environments are between two rollouts; it stays on the host and is not saved."""

    epoch: int
    """The epoch that continues from here."""
    calls: int
    """Calls of the environments so far, which shows whether other code has stepped them since."""
    observation: PyTree
    """The policy's next observation, `[env, ...]`."""
    first: np.ndarray
    """bool `[env]`: the observation is the first of an episode."""
    recurrent: PyTree
    """Recurrent state of the policy, `[env, ...]`; () if it has none."""
    episode_return: np.ndarray
    """float32 `[env]`: sum of the rewards of the running episodes."""
    episode_length: np.ndarray
    """int32 `[env]`: steps of the running episodes."""


def collect_on_host(
    policy_step: PolicyStep,
    weights: PolicyWeights,
    envs: HostEnvironments,
    start: HostRolloutState,
    key: jax.Array,
    *,
    steps: int,
) -> tuple[HostRolloutState, Experience, StepStatistics]:
    """Take some steps in each environment, as `device_collecting.collect` does on the device.

    Returns:
        Where the environments are afterwards, and numpy arrays `[time, env, ...]`.

    Raises:
        ValueError: a reward or an observation is not finite.
    """
    observation, first, recurrent = start.observation, start.first, start.recurrent
    returns, lengths = start.episode_return, start.episode_length
    no_first = np.zeros(len(envs), bool)
    rows = []
    _check_finite(envs, observation, None, 0)
    for t in range(steps):
        *outputs, recurrent = policy_step(weights, observation, recurrent, first, key, np.int32(t))
        action, clipped, log_prob, value = jax.device_get(outputs)
        step = envs.step(clipped)
        _check_finite(envs, (step.reward, step.final_observation, step.observation), clipped, t)
        final_value = np.zeros_like(value)
        if step.truncated.any():
            *_, final_value, _ = policy_step(
                weights, step.final_observation, recurrent, no_first, key, np.int32(t)
            )
        row = action, log_prob, value, step.reward, step.terminated, step.truncated
        returns, lengths = returns + step.reward, lengths + 1
        rows.append((observation, *row, first, np.asarray(final_value), returns, lengths))
        observation, first = step.observation, step.terminated | step.truncated
        returns, lengths = np.where(first, np.float32(0), returns), np.where(first, 0, lengths)
    *_, last, _ = policy_step(weights, observation, recurrent, first, key, np.int32(steps))
    stacked = jax.tree.map(lambda *arrays: np.stack(arrays), *rows)
    *columns, final_value, returns_so_far, lengths_so_far = stacked
    values, truncated = columns[3], columns[6]
    following = np.concatenate([values[1:], np.asarray(last)[None]])
    next_value = np.where(truncated, final_value, following)
    experience = Experience._make((*columns, next_value, start.recurrent))
    after = start.epoch + 1, envs.calls, observation, first, recurrent, returns, lengths
    no = np.zeros_like(truncated)
    statistics = StepStatistics(returns_so_far, lengths_so_far, no, no.astype(np.int32))
    return HostRolloutState(*after), experience, statistics


def make_policy_step(network: Any, action_space: Discrete | Box) -> PolicyStep:
    """Build the function that each step dispatches: the policy's forward pass and its action.

    It is `(weights, observation, recurrent, first, key, step) -> (action as sampled, clipped
    action, log probability, value, recurrent state)`.
    """

    @jax.jit
    def policy_step(
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

    return policy_step


def _check_finite(
    envs: HostEnvironments, results: PyTree, actions: np.ndarray | None, t: int
) -> None:
    """Check rewards and observations `[env, ...]`, before the policy learns from them."""
    for array in jax.tree.leaves(results):
        if array.dtype.kind != "f" or np.isfinite(array).all():
            continue
        index = int(np.argmin(np.isfinite(array).reshape(len(envs), -1).all(axis=1)))
        action = "" if actions is None else f", for the action {actions[index].tolist()}"
        raise ValueError(
            f"environment {index} of {len(envs)} ({envs.name!r}) returned a reward or an "
            f"observation that is not finite at step {t} of the rollout{action}: look at its step "
            "and its reset"
        )
