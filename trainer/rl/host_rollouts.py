"""The rollout in environments on the host: a phase whose data is what it plays."""

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
from trainer.rl.host_steps import EpisodeTotals, HostRolloutState, collect_on_host, make_policy_step
from trainer.rl.policies import init_recurrent_state, weights_of
from trainer.rl.rollouts import (
    Experience,
    StepStatistics,
    compute_rollout_metrics,
    finalize_rollout_metrics,
)
from trainer.state import PyTree, TrainState

log = logging.getLogger("entracte")


def host_rollout(
    network: Any, envs: HostEnvironments, steps: int, *, name: str = "rollout"
) -> Phase:
    """Make a phase like that of `rollout`, for environments that step on the host.

    The experience and the metrics are the same. The environments go on from one epoch to the next
    as long as this phase alone steps them; at any other epoch than the one that comes next, and so
    in a run that was stopped and goes on, they begin anew, seeded by the epoch. A warning says so
    where it is not the run's first.

    Args:
        network: of the policy, see `policies.forward`.
        envs: to play in, as `from_gymnasium` makes them.
        steps: of each environment.
        name: of the phase.

    Raises:
        ValueError: there are no steps; in training, a reward or an observation is not finite: the
            environment and the step are named.
    """
    if steps < 1:
        raise ValueError(f"a rollout needs at least 1 step; got {steps}")
    played: Any = envs  # has the name and the lessons of an Environment, which are all that is read

    def run(state: TrainState, data: Any) -> tuple[TrainState, Experience, dict[str, Any]]:
        experience, episodes = data
        nothing = jnp.zeros_like(experience.terminated)
        seen = StepStatistics._make((*episodes, nothing, nothing.astype(jnp.int32)))
        return state, experience, compute_rollout_metrics(played, experience, seen)

    def finalize(means: Mapping[str, float]) -> dict[str, float | None]:
        return finalize_rollout_metrics(means, envs.name, len(envs))

    source = HostRolloutSource(network, envs, steps, name)
    return Phase(name, run, source, updates_state=False, finalize=finalize)


@dataclasses.dataclass(frozen=True)
class HostRolloutSource:
    """The source of a rollout on the host: it plays when its phase asks for data."""

    network: Any
    envs: HostEnvironments
    steps: int
    name: str

    @property
    def example(self) -> PyTree:
        """Observations of all environments, such as a network is initialised with."""
        return example(self.envs.observation_space, len(self.envs))

    def training(self) -> Feed:
        """Play the steps of a rollout, once an epoch."""
        return Feed(
            pieces=self._pieces(),
            example=_shapes(
                self.envs, init_recurrent_state(self.network, len(self.envs)), self.steps
            ),
            rows=lambda piece, key: jnp.zeros(1, jnp.int32),
            batch=lambda piece, row: piece,
            verify=lambda state, check: None,
        )

    def evaluation(self) -> Feed:
        """Refuse: what is played is no split, with every example exactly once.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "what a policy plays on the host is no split to evaluate on, example by example"
        )

    def _pieces(self) -> Callable[..., Iterator[tuple[Any, None]]]:
        """Make the function that plays, and keeps where the environments are for the next epoch."""
        look = make_policy_step(self.network, self.envs.action_space)
        kept: list[HostRolloutState] = []

        def pieces(
            state: TrainState, check: Check | None, position: None
        ) -> Iterator[tuple[Any, None]]:
            epoch = int(state.epoch)
            standing = kept.pop() if kept else None
            if standing is None or (standing.epoch, standing.taken) != (epoch, self.envs.taken):
                standing = self._begun(epoch)
            weights, key = weights_of(state), state.key(self.name)
            after, *piece = collect_on_host(
                look, weights, self.envs, standing, key, steps=self.steps
            )
            kept[:] = [after]
            with span("transfer"):
                moved = jax.device_put(tuple(piece))
            yield moved, None

        return pieces

    def _begun(self, epoch: int) -> HostRolloutState:
        """Begin an episode in each environment."""
        if epoch:
            log.warning(
                "%s: the environments %r are on the host, and no commit holds their state: they "
                "begin new episodes at epoch %d, and the run that goes on is not the uninterrupted "
                "one bit for bit",
                self.name,
                self.envs.name,
                epoch,
            )
        count = len(self.envs)
        observation, recurrent = self.envs.reset(epoch), init_recurrent_state(self.network, count)
        sums = np.zeros(count, np.float32), np.zeros(count, np.int32)
        return HostRolloutState(
            epoch, self.envs.taken, observation, np.ones(count, bool), recurrent, *sums
        )


def _shapes(envs: HostEnvironments, recurrent: PyTree, steps: int) -> PyTree:
    """Give the shapes and dtypes of what `collect_on_host` gives, to compile for."""
    shape = steps, len(envs)
    number = jax.ShapeDtypeStruct(shape, jnp.float32)
    flag = jax.ShapeDtypeStruct(shape, bool)

    def examples() -> tuple[PyTree, PyTree]:
        return example(envs.observation_space, *shape), example(envs.action_space, *shape)

    observation, action = jax.eval_shape(examples)
    experience = (
        *(observation, action, number, number, number, flag, flag, flag, number),
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), recurrent),
    )
    return Experience._make(experience), EpisodeTotals(
        number, jax.ShapeDtypeStruct(shape, jnp.int32)
    )
