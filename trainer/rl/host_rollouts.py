"""The rollout in environments on the host: a phase whose data source steps them."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trainer.data.source import Check, Feed
from trainer.host.time_spans import span
from trainer.phases.phase import Phase
from trainer.rl.environments.environment import example
from trainer.rl.environments.from_gymnasium import HostEnvironments
from trainer.rl.experience import (
    Experience,
    StepStatistics,
    compute_rollout_metrics,
    finalize_rollout_metrics,
)
from trainer.rl.host_collecting import HostRolloutState, collect_on_host, make_policy_step
from trainer.rl.policies import init_recurrent_state, weights_of
from trainer.state import PyTree, TrainState

log = logging.getLogger("entracte")


def host_rollout(
    network: Any, envs: HostEnvironments, steps: int, *, name: str = "rollout"
) -> Phase:
    """Build a phase like that of `rollout`, for environments that step on the host.

    The experience and the metrics are the same. The environments continue from one epoch to the
    next as long as this phase alone steps them. At any other epoch than the next one, and so in a
    resumed run, they start fresh, seeded by the epoch, and a warning is logged unless it is the
    run's first.

    Args:
        network: of the policy, see `policies.forward`.
        envs: to act in, as `from_gymnasium` makes them.
        steps: number of steps in each environment, at least 1.
        name: of the phase.

    Raises:
        ValueError: in training, a reward or an observation is not finite: the error names the
            environment and the step.
    """

    def run(state: TrainState, data: Any) -> tuple[TrainState, Experience, dict[str, Any]]:
        experience, statistics = data
        return state, experience, compute_rollout_metrics(experience, statistics, ())

    def finalize(means: Mapping[str, float]) -> dict[str, float | None]:
        return finalize_rollout_metrics(means, envs.name, len(envs))

    source = HostRolloutSource(network, envs, steps, name)
    return Phase(name, run, source, updates_state=False, finalize=finalize)


@dataclasses.dataclass(frozen=True)
class HostRolloutSource:
    """The source of a rollout on the host: it steps the environments when its phase needs data."""

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
            example=_infer_shapes(
                self.envs, init_recurrent_state(self.network, len(self.envs)), self.steps
            ),
            rows=lambda piece, key: jnp.zeros(1, jnp.int32),
            batch=lambda piece, row: piece,
            verify=lambda state, check: None,
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
                *(policy_step, weights_of(state), self.envs, start, state.key(self.name)),
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
        observation, recurrent = self.envs.reset(epoch), init_recurrent_state(self.network, count)
        totals = np.zeros(count, np.float32), np.zeros(count, np.int32)
        return HostRolloutState(
            epoch, self.envs.calls, observation, np.ones(count, bool), recurrent, *totals
        )


def _infer_shapes(envs: HostEnvironments, recurrent: PyTree, steps: int) -> PyTree:
    """Return the shapes and dtypes of what `collect_on_host` returns, to compile for."""

    def make_zeros() -> tuple[Experience, StepStatistics]:
        shape = steps, len(envs)
        number, count, flag = (jnp.zeros(shape, dtype) for dtype in (jnp.float32, jnp.int32, bool))
        observation = example(envs.observation_space, *shape)
        action = example(envs.action_space, *shape)
        fields = observation, action, number, number, number, flag, flag, flag, number, recurrent
        return Experience._make(fields), StepStatistics(number, count, flag, count)

    return jax.eval_shape(make_zeros)
