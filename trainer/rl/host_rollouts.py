"""Rollouts in environments on the host: the policy on the device, one dispatch a step."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trainer.data.source import Check, Feed
from trainer.host.time_spans import span
from trainer.placement.meshes import get_mesh
from trainer.rl import policies
from trainer.rl.environments.environment import Box, Discrete, example
from trainer.rl.environments.from_gymnasium import HostEnvironments
from trainer.rl.experience import Experience, StepStatistics
from trainer.state import PyTree, TrainState

log = logging.getLogger("entracte")

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


@dataclasses.dataclass(frozen=True)
class HostRolloutSource:
    """The source of a rollout on the host: it steps the environments when its phase needs data.

    The environments continue from one epoch to the next as long as this phase alone steps them. At
    any other epoch than the next one, and so in a resumed run, they start fresh, seeded by the
    epoch, and a warning is logged unless it is the run's first.
    """

    network: Any
    envs: HostEnvironments
    steps: int
    name: str

    @property
    def example(self) -> PyTree:
        """Observations of all environments, to initialize a network with."""
        return example(self.envs.observation_space, len(self.envs))

    def training(self) -> Feed:
        """Return the feed that takes the steps of a rollout, once an epoch."""
        return Feed(
            pieces=self._make_pieces(),
            example=jax.eval_shape(self._make_zeros),
            rows=lambda piece, key: jnp.zeros(1, jnp.int32),
            batch=lambda piece, row: piece,
            verify=self._refuse_mesh,
        )

    def _refuse_mesh(self, state: TrainState, check: Check | None) -> None:
        if (mesh := get_mesh(state)) is not None:
            raise ValueError(
                f"{self.name}: the environments {self.envs.name!r} are stepped on the host, one "
                f"process with one device; the state lies on a mesh of {mesh.size}: leave "
                "trainer.spread out, or take environments in JAX"
            )

    def evaluation(self) -> Feed:
        """Refuse: a rollout is no split, with every example exactly once.

        Raises:
            TypeError: always.
        """
        raise TypeError("a rollout on the host is no split to evaluate on, example by example")

    def _make_pieces(self) -> Callable[..., Iterator[tuple[Any, None]]]:
        """Build the function that collects a rollout, and keeps where the environments are."""
        policy_step = make_policy_step(self.network, self.envs.action_space)
        kept: list[HostRolloutState] = []

        def pieces(
            state: TrainState, check: Check | None, position: None
        ) -> Iterator[tuple[Any, None]]:
            epoch = int(state.epoch)
            start = kept.pop() if kept else None
            if start is None or (start.epoch, start.calls) != (epoch, self.envs.calls):
                start = self._start_fresh(epoch)
            after, *piece = collect_on_host(
                *(policy_step, policies.weights_of(state), self.envs, start, state.key(self.name)),
                steps=self.steps,
            )
            kept[:] = [after]
            with span("transfer"):
                on_device = jax.device_put(tuple(piece))
            yield on_device, None

        return pieces

    def _start_fresh(self, epoch: int) -> HostRolloutState:
        """Begin an episode in each environment."""
        if epoch:
            log.warning(
                "%s: the environments %r are on the host, and no checkpoint holds their state: "
                "they begin new episodes at epoch %d, so the resumed run does not match the "
                "uninterrupted one bit for bit",
                self.name,
                self.envs.name,
                epoch,
            )
        count = len(self.envs)
        observation = self.envs.reset(epoch)
        return HostRolloutState(
            epoch=epoch,
            calls=self.envs.calls,
            observation=observation,
            first=np.ones(count, bool),
            recurrent=policies.init_recurrent_state(self.network, count),
            episode_return=np.zeros(count, np.float32),
            episode_length=np.zeros(count, np.int32),
        )

    def _make_zeros(self) -> tuple[Experience, StepStatistics]:
        """Return zeros in the shapes and dtypes of what `collect_on_host` returns."""
        shape = self.steps, len(self.envs)
        number, count, flag = (jnp.zeros(shape, dtype) for dtype in (jnp.float32, jnp.int32, bool))
        observation = example(self.envs.observation_space, *shape)
        action = example(self.envs.action_space, *shape)
        recurrent = policies.init_recurrent_state(self.network, len(self.envs))
        fields = observation, action, number, number, number, flag, flag, flag, number, recurrent
        return Experience._make(fields), StepStatistics(number, count, flag, count)


def collect_on_host(
    policy_step: PolicyStep,
    weights: policies.PolicyWeights,
    envs: HostEnvironments,
    start: HostRolloutState,
    key: jax.Array,
    *,
    steps: int,
) -> tuple[HostRolloutState, Experience, StepStatistics]:
    """Take some steps in each environment, as `rollouts.collect` does on the device.

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
        weights: policies.PolicyWeights,
        observation: PyTree,
        recurrent: PyTree,
        first: jax.Array,
        key: jax.Array,
        step: jax.Array,
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, PyTree]:
        outputs, recurrent, _ = policies.forward(network, weights, observation, recurrent, first)
        action, log_prob = policies.act(outputs, jax.random.fold_in(key, step))
        clipped = policies.clip_action(action, action_space)
        return action, clipped, log_prob, outputs["value"], recurrent

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
