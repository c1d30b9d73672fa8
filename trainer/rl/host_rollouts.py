"""The rollout in environments on the host: the data source of its phase steps them."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trainer.data.source import Check, Feed
from trainer.host.time_spans import span
from trainer.rl.environments.environment import example
from trainer.rl.environments.from_gymnasium import HostEnvironments
from trainer.rl.experience import Experience, StepStatistics
from trainer.rl.host_collecting import HostRolloutState, collect_on_host, make_policy_step
from trainer.rl.policies import init_recurrent_state, weights_of
from trainer.state import PyTree, TrainState

log = logging.getLogger("entracte")


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

    def _make_zeros(self) -> tuple[Experience, StepStatistics]:
        """Return zeros in the shapes and dtypes of what `collect_on_host` returns."""
        shape = self.steps, len(self.envs)
        number, count, flag = (jnp.zeros(shape, dtype) for dtype in (jnp.float32, jnp.int32, bool))
        observation = example(self.envs.observation_space, *shape)
        action = example(self.envs.action_space, *shape)
        recurrent = init_recurrent_state(self.network, len(self.envs))
        fields = observation, action, number, number, number, flag, flag, flag, number, recurrent
        return Experience._make(fields), StepStatistics(number, count, flag, count)
