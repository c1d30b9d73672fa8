"""The phase that collects experience, on the device or on the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.phases.phase import Phase
from trainer.rl.device_collecting import collect
from trainer.rl.environments.environment import Environment
from trainer.rl.environments.from_gymnasium import HostEnvironments
from trainer.rl.experience import Experience, compute_rollout_metrics, finalize_rollout_metrics
from trainer.rl.host_rollouts import HostRolloutSource
from trainer.rl.policies import weights_of
from trainer.state import TrainState


def rollout(
    network: Any, env: Environment | HostEnvironments, steps: int, *, name: str = "rollout"
) -> Phase:
    """Build the phase that collects `Experience`, from where the environments are.

    An environment begins the next episode as soon as one ends. The phase reports, over the episodes
    that ended in it, `return` (sum of rewards) and `length` (steps), `episodes` (how many), and
    `steps` (of all environments); with lessons also `return/<lesson>` and `episodes/<lesson>`.
    If no episode ended, this epoch has no return.

    Args:
        network: of the policy, see `policies.forward`.
        env: to act in; lessons are drawn by `state.carry["lessons"]`. Environments of
            `from_gymnasium` are stepped on the host, see `HostRolloutSource`.
        steps: number of steps in each environment; `state.carry["environment"]` has the number of
            environments.
        name: of the phase.

    Raises:
        ValueError: `steps` is less than 1; in training, a reward or an observation is not finite:
            the error names the first such step.
    """
    if steps < 1:
        raise ValueError(f"a rollout needs at least 1 step; got {steps}")

    def finalize(means: Mapping[str, float]) -> dict[str, float | None]:
        return finalize_rollout_metrics(means, env.name, round(means["steps"]) // steps)

    if isinstance(env, HostEnvironments):

        def report(state: TrainState, data: Any) -> tuple[TrainState, Experience, dict[str, Any]]:
            experience, statistics = data
            return state, experience, compute_rollout_metrics(experience, statistics, ())

        source = HostRolloutSource(network, env, steps, name)
        return Phase(name, report, source, updates_state=False, finalize=finalize)

    def run(state: TrainState, data: None) -> tuple[TrainState, Experience, dict[str, Any]]:
        if "environment" not in state.carry:
            raise ValueError(
                f"phase {name!r} continues from state.carry['environment'], which is not there: "
                "begin with a state that the init of trainer.rl.ppo made"
            )
        params = state.carry["lessons"] if env.lessons else env.params
        after, experience, statistics = collect(
            *(network, weights_of(state), env, params),
            *(state.carry["environment"], state.key(name)),
            steps=steps,
        )
        metrics = compute_rollout_metrics(experience, statistics, env.lessons)
        return state.replace(carry={**state.carry, "environment": after}), experience, metrics

    return Phase(name, run, finalize=finalize)
