"""Rollouts: the phase that collects experience, and how it does so on the device."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from trainer.phases.phase import Phase
from trainer.placement.constraints import map_rows
from trainer.rl import policies
from trainer.rl.environments.environment import Environment, TimeStep
from trainer.rl.environments.from_gymnasium import HostEnvironments
from trainer.rl.environments.wrappers import record_episodes, reset_if_ended
from trainer.rl.experience import (
    Experience,
    RolloutState,
    StepStatistics,
    compute_rollout_metrics,
    finalize_rollout_metrics,
    is_finite,
    reduce_rollouts,
)
from trainer.rl.host_rollouts import HostRolloutSource
from trainer.state import PyTree, TrainState


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
        return finalize_rollout_metrics(means, env.name)

    if isinstance(env, HostEnvironments):

        def report(state: TrainState, data: Any) -> tuple[TrainState, Experience, dict[str, Any]]:
            experience, statistics = data
            return state, experience, compute_rollout_metrics(experience, statistics, ())

        source = HostRolloutSource(network, env, steps, name)
        return Phase(
            *(name, report, source),
            updates_state=False,
            reduce=reduce_rollouts(()),
            finalize=finalize,
            check_data=lambda state, batch: None,  # so that the source sees the state
        )

    def run(state: TrainState, data: None) -> tuple[TrainState, Experience, dict[str, Any]]:
        if "environment" not in state.carry:
            raise ValueError(
                f"phase {name!r} continues from state.carry['environment'], which is not there: "
                "begin with a state that the init of trainer.rl.ppo made"
            )
        params = state.carry["lessons"] if env.lessons else env.params
        after, experience, statistics = collect(
            *(network, policies.weights_of(state), env, params),
            *(state.carry["environment"], state.key(name)),
            steps=steps,
        )
        metrics = compute_rollout_metrics(experience, statistics, env.lessons)
        return state.replace(carry={**state.carry, "environment": after}), experience, metrics

    return Phase(name, run, reduce=reduce_rollouts(env.lessons), finalize=finalize)


def init_rollout_state(
    network: Any, env: Environment | HostEnvironments, envs: int, key: jax.Array, params: PyTree
) -> RolloutState:
    """Begin an episode in each environment; those on the host keep their state themselves."""
    if isinstance(env, HostEnvironments):
        return RolloutState._make([()] * 4)
    keys = jax.random.split(key, envs)
    state, observation = jax.vmap(record_episodes(env).reset, (0, None))(keys, params)
    recurrent = policies.init_recurrent_state(network, envs)
    return RolloutState(state, observation, jnp.ones(envs, bool), recurrent)


def collect(
    network: Any,
    weights: policies.PolicyWeights,
    env: Environment,
    params: PyTree,
    start: RolloutState,
    key: jax.Array,
    *,
    steps: int,
) -> tuple[RolloutState, Experience, StepStatistics]:
    """Take some steps in each environment, from `start` on, with `key` for all random numbers."""
    envs, recurrent_policy = start.first.shape[0], policies.is_recurrent(start.recurrent)
    recorded = record_episodes(env)

    @functools.partial(jax.vmap, in_axes=(0, 0, 0))
    def take_step(keys: jax.Array, state: PyTree, action: jax.Array) -> TimeStep:
        taken = recorded.step(keys[0], state, action, params)
        return reset_if_ended(recorded, keys[1], taken, params)

    def estimate_final_values(weights: policies.PolicyWeights, rows: PyTree) -> jax.Array:
        final, recurrent, truncated, like = rows
        again = jnp.zeros(len(truncated), bool)
        # Truncation is rare: a value of each final observation would double the policy's cost.
        return lax.cond(
            jnp.any(truncated),
            lambda: policies.forward(network, weights, final, recurrent, again)[0]["value"],
            lambda: jnp.zeros_like(like),
        )

    def value_of(observation: PyTree, recurrent: PyTree, first: jax.Array) -> jax.Array:
        return policies.forward(network, weights, observation, recurrent, first)[0]["value"]

    def act_and_step(before: RolloutState, keys: Any) -> tuple[RolloutState, Any]:
        outputs, recurrent, _ = policies.forward(
            network, weights, before.observation, before.recurrent, before.first
        )
        action, log_prob = policies.act(outputs, keys[0])
        step = take_step(keys[1], before.state, policies.clip_action(action, env.action_space))
        final = step.info["final_observation"]
        final_value = map_rows(
            estimate_final_values, weights, (final, recurrent, step.truncated, outputs["value"])
        )
        ended = step.terminated | step.truncated
        row = Experience(
            observation=before.observation,
            action=action,
            log_prob=log_prob,
            value=outputs["value"] if recurrent_policy else jnp.zeros(()),
            reward=step.reward,
            terminated=step.terminated,
            truncated=step.truncated,
            first=before.first,
            next_value=final_value,
            recurrent=(),
        )
        statistics = StepStatistics(
            step.info["episode_return"],
            step.info["episode_length"],
            ~is_finite(step.reward, final),
            step.info.get("lesson", jnp.zeros(envs, jnp.int32)),
        )
        return RolloutState(step.state, step.observation, ended, recurrent), (row, statistics)

    act_key, env_key = jax.random.split(key)
    env_keys = jax.random.split(env_key, (steps, envs))  # all at once: splits in a loop cost time
    env_keys = jax.vmap(jax.vmap(jax.random.split))(env_keys)
    keys = jax.random.split(act_key, steps), env_keys
    after, (rows, statistics) = lax.scan(act_and_step, start, keys)
    if not recurrent_policy:  # all values at once; inside the loop they would take a third of it
        outputs, _, _ = policies.unroll_policy(network, weights, rows.observation, (), rows.first)
        rows = rows._replace(value=outputs["value"])
    last = value_of(after.observation, after.recurrent, after.first)
    following = jnp.concatenate([rows.value[1:], last[None]])
    next_value = jnp.where(rows.truncated, rows.next_value, following)
    # The observation of a reset belongs to no step's result: it is checked where it is used.
    broken = statistics.broken | ~is_finite(rows.reward, rows.observation)
    experience = rows._replace(next_value=next_value, recurrent=start.recurrent)
    return after, experience, statistics._replace(broken=broken)
