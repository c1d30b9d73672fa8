"""The rollout: a policy plays in many environments at once, on the device."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from trainer.phases.phase import Phase
from trainer.rl.environments.environment import Environment, Step
from trainer.rl.environments.from_gymnasium import HostEnvironments
from trainer.rl.environments.wrappers import record_episodes, reset_if_ended
from trainer.rl.policies import (
    PolicyWeights,
    act,
    clip_action,
    forward,
    init_recurrent_state,
    is_recurrent,
    unroll_policy,
    weights_of,
)
from trainer.state import PyTree, TrainState


class RolloutState(NamedTuple):
    """Where the environments are between two rollouts, at `state.carry["environment"]`."""

    state: PyTree
    """Of the environments, `[env, ...]`."""
    observation: PyTree
    """What the policy sees next, `[env, ...]`."""
    first: jax.Array
    """bool `[env]`: that observation begins an episode."""
    recurrent: PyTree
    """The policy's memory, `[env, ...]`; () where it has none."""


class Experience(NamedTuple):
    """What a rollout hands to the update."""

    observation: PyTree
    """`[time, env, ...]`, as the environments gave it, not normalised."""
    action: jax.Array
    """`[time, env, ...]`, as it was drawn, not bounded."""
    log_prob: jax.Array
    """float32 `[time, env]`: of the action, under the policy that drew it."""
    value: jax.Array
    """float32 `[time, env]`: of the observation, as the policy valued it."""
    reward: jax.Array
    """float32 `[time, env]`."""
    terminated: jax.Array
    """bool `[time, env]`: the step ended the episode, and nothing was to come."""
    truncated: jax.Array
    """bool `[time, env]`: the step cut the episode off, by a time limit say."""
    first: jax.Array
    """bool `[time, env]`: the observation begins an episode."""
    next_value: jax.Array
    """float32 `[time, env]`: of the observation after the step, before any reset."""
    recurrent: PyTree
    """The policy's memory before the first step, `[env, ...]`; () where it has none."""


class StepStatistics(NamedTuple):
    """What is measured of a step besides, `[time, env]` each."""

    episode_return: jax.Array
    """float32: sum of the episode's rewards up to and with this step."""
    episode_length: jax.Array
    """int32: its steps."""
    broken: jax.Array
    """bool: a reward or observation is not finite."""
    lesson: jax.Array
    """int32: of the episode; 0 where there are no lessons."""


def rollout(
    network: Any, env: Environment | HostEnvironments, steps: int, *, name: str = "rollout"
) -> Phase:
    """Make a phase that plays on from where the environments are, and hands on its `Experience`.

    Environments that end an episode begin another at once. The phase reports, over the episodes
    that ended in it, `return` (sum of rewards) and `length` (steps), `episodes` (how many), and
    `steps` (of all environments); with lessons also `return/<lesson>` and `episodes/<lesson>`.
    Where no episode ended, there is no return: the metric is missing from this epoch's.

    Args:
        network: of the policy, see `policies.forward`.
        env: to play in; where it has lessons, they are drawn by `state.carry["lessons"]`. With
            those of `from_gymnasium` the phase plays on the host, see `host_rollout`.
        steps: of each environment; how many of them there are, `state.carry["environment"]` tells.
        name: of the phase.

    Raises:
        ValueError: there are no steps; in training, a reward or an observation is not finite: the
            first such step is named.
    """
    if steps < 1:
        raise ValueError(f"a rollout needs at least 1 step; got {steps}")
    if isinstance(env, HostEnvironments):
        from trainer.rl.host_rollouts import host_rollout  # which needs what is defined here

        return host_rollout(network, env, steps, name=name)

    def run(state: TrainState, data: None) -> tuple[TrainState, Experience, dict[str, Any]]:
        if "environment" not in state.carry:
            raise ValueError(
                f"phase {name!r} plays on from state.carry['environment'], which is not there: "
                "begin with a state that the init of trainer.rl.ppo made"
            )
        weights, playing = weights_of(state), state.carry["environment"]
        params = state.carry["lessons"] if env.lessons else env.params
        after, experience, seen = collect_experience(
            network, weights, env, params, playing, state.key(name), steps=steps
        )
        carry = {**state.carry, "environment": after}
        return (
            state.replace(carry=carry),
            experience,
            compute_rollout_metrics(env, experience, seen),
        )

    def finalize(means: Mapping[str, float]) -> dict[str, float | None]:
        envs = round(means["steps"]) // steps
        return finalize_rollout_metrics(means, env.name, envs)

    return Phase(name, run, finalize=finalize)


def init_rollout_state(
    network: Any, env: Environment | HostEnvironments, envs: int, key: jax.Array, params: PyTree
) -> RolloutState:
    """Begin an episode in each environment; those on the host keep their state themselves."""
    if isinstance(env, HostEnvironments):
        return RolloutState._make([()] * 4)
    keys = jax.random.split(key, envs)
    state, observation = jax.vmap(record_episodes(env).reset, (0, None))(keys, params)
    return RolloutState(
        state, observation, jnp.ones(envs, bool), init_recurrent_state(network, envs)
    )


def collect_experience(
    network: Any,
    weights: PolicyWeights,
    env: Environment,
    params: PyTree,
    playing: RolloutState,
    key: jax.Array,
    *,
    steps: int,
) -> tuple[RolloutState, Experience, StepStatistics]:
    """Play some steps in all environments.

    Args:
        network: of the policy.
        weights: of the network; they stay as they are.
        env: to play in.
        params: of the environment.
        playing: where the environments are.
        key: of all that is drawn at random.
        steps: of each environment.
    """
    envs, remembering = playing.first.shape[0], is_recurrent(playing.recurrent)
    recorded = record_episodes(env)

    @functools.partial(jax.vmap, in_axes=(0, 0, 0))
    def step_of(keys: jax.Array, state: PyTree, action: jax.Array) -> Step:
        taken = recorded.step(keys[0], state, action, params)
        return reset_if_ended(recorded, keys[1], taken, params)

    def value_of(observation: PyTree, recurrent: PyTree, first: jax.Array) -> jax.Array:
        return forward(network, weights, observation, recurrent, first)[0]["value"]

    def one(playing: RolloutState, keys: Any) -> tuple[RolloutState, Any]:
        outputs, recurrent, _ = forward(
            network, weights, playing.observation, playing.recurrent, playing.first
        )
        action, log_prob = act(outputs, keys[0])
        step = step_of(keys[1], playing.state, clip_action(action, env.action_space))
        final = step.info["final_observation"]
        # Seldom are there any: a look at all observations twice would cost as much as the first.
        final_value = lax.cond(
            jnp.any(step.truncated),
            lambda: value_of(final, recurrent, jnp.zeros(envs, bool)),
            lambda: jnp.zeros_like(outputs["value"]),
        )
        ended = step.terminated | step.truncated
        row = Experience(
            observation=playing.observation,
            action=action,
            log_prob=log_prob,
            value=outputs["value"] if remembering else jnp.zeros(()),
            reward=step.reward,
            terminated=step.terminated,
            truncated=step.truncated,
            first=playing.first,
            next_value=final_value,
            recurrent=(),
        )
        return RolloutState(step.state, step.observation, ended, recurrent), (row, _seen(step))

    act_key, env_key = jax.random.split(key)
    env_keys = jax.random.split(env_key, (steps, envs))  # split here: in the loop each split counts
    env_keys = jax.vmap(jax.vmap(jax.random.split))(env_keys)
    keys = jax.random.split(act_key, steps), env_keys
    after, (rows, seen) = lax.scan(one, playing, keys)
    if (
        not remembering
    ):  # all values in one product; in the loop they would take a third of its time
        outputs, _, _ = unroll_policy(network, weights, rows.observation, (), rows.first)
        rows = rows._replace(value=outputs["value"])
    last = value_of(after.observation, after.recurrent, after.first)
    following = jnp.concatenate([rows.value[1:], last[None]])
    next_value = jnp.where(rows.truncated, rows.next_value, following)
    # What a reset gave is no step's own observation: it is found where it is looked at.
    seen = seen._replace(broken=seen.broken | ~is_finite(rows.reward, rows.observation))
    return after, rows._replace(next_value=next_value, recurrent=playing.recurrent), seen


def compute_rollout_metrics(
    env: Environment, experience: Experience, seen: StepStatistics
) -> dict[str, Any]:
    """Give the metrics of a rollout.

    Two are for `finalize_rollout_metrics` alone: `_sound` is 1, or minus the place of the first
    step that was not finite; `_misled` says whether that was for an action that was not.
    """
    ended = experience.terminated | experience.truncated
    sound = find_first_nonfinite(seen.broken)
    metrics = {
        "episodes": jnp.sum(ended, dtype=jnp.int32),
        "steps": jnp.int32(ended.size),
        "_sound": sound,
        "_misled": misled(experience, jnp.maximum(-sound, 0)),
        **sum_and_count(ended, {"return": seen.episode_return, "length": seen.episode_length}, ""),
    }
    for number, lesson in enumerate(env.lessons):
        here = ended & (seen.lesson == number)
        metrics |= sum_and_count(here, {"return": seen.episode_return}, f"/{lesson}")
        metrics[f"episodes/{lesson}"] = jnp.sum(here, dtype=jnp.int32)
    return metrics


def finalize_rollout_metrics(
    means: Mapping[str, float], env: str, envs: int
) -> dict[str, float | None]:
    """Leave out means over no episode.

    Raises:
        ValueError: something was not finite; it names the environment and the step.
    """
    if means["_sound"] < 1:
        step, index = divmod(-int(means["_sound"]), envs)
        if means["_misled"]:
            raise ValueError(
                f"the policy gave environment {index} of {envs} ({env!r}) an action that is not "
                f"finite at step {step} of the rollout: its parameters went wrong in the updates "
                "before, which stop_on_nan() would have found"
            )
        raise ValueError(
            f"environment {index} of {envs} ({env!r}) gave a reward or an observation that is not "
            f"finite at step {step} of the rollout: look at its step function, its reset and its "
            "params"
        )
    found: dict[str, float | None] = {"_sound": None, "_misled": None}
    for name, count in means.items():
        kind, _, lesson = name.partition("/")
        if kind == "episodes" and not count:
            found |= {f"return/{lesson}": None} if lesson else {"return": None, "length": None}
    return found


def _seen(step: Step) -> StepStatistics:
    return StepStatistics(
        step.info["episode_return"],
        step.info["episode_length"],
        ~is_finite(step.reward, step.info["final_observation"]),
        step.info.get("lesson", jnp.zeros(step.reward.shape, jnp.int32)),
    )


def is_finite(reward: jax.Array, observation: PyTree) -> jax.Array:
    """Say of each reward `[..., env]` whether it and the observation beside it are finite."""
    given = reward, *jax.tree.leaves(observation)
    sound = [jnp.isfinite(x).reshape(*reward.shape, -1).all(axis=-1) for x in given]
    return jnp.all(jnp.stack(sound), axis=0)


def misled(experience: Experience, place: jax.Array) -> jax.Array:
    """Say whether the action at a place is not finite, though what the policy saw is, () int32."""
    acted, saw = jax.tree.map(
        lambda x: x.reshape(experience.terminated.size, -1)[place],
        (experience.action, experience.observation),
    )
    none = jnp.zeros(())
    return (is_finite(none, saw) & ~is_finite(none, acted)).astype(jnp.int32)


def find_first_nonfinite(broken: jax.Array) -> jax.Array:
    """Give 1, or minus the place of the first that is broken, () int32."""
    return jnp.where(jnp.any(broken), -jnp.argmax(broken), 1).astype(jnp.int32)


def sum_and_count(where: jax.Array, values: Mapping[str, jax.Array], suffix: str) -> dict[str, Any]:
    """Give sums and how many they are of, to be divided once, for the names with a suffix."""
    count = jnp.sum(where, dtype=jnp.int32)
    return {f"{k}{suffix}": (jnp.sum(x, where=where), count) for k, x in values.items()}
