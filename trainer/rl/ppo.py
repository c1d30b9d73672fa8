"""Proximal policy optimization: a loss, and the program of a rollout and an update."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from trainer.losses.loss import LossFunction
from trainer.phases.phase import Phase
from trainer.rl import distributions
from trainer.rl.distillation import Teacher
from trainer.rl.environments.environment import Environment, check_contract, example
from trainer.rl.environments.from_gymnasium import HostEnvironments
from trainer.rl.normalization import init_reward_statistics, init_statistics
from trainer.rl.policies import check_policy, init_recurrent_state, init_weights, is_recurrent
from trainer.rl.ppo_update import update
from trainer.rl.rollouts import init_rollout_state, rollout
from trainer.state import PyTree, TrainState
from trainer.supervised.network_checks import check_network
from trainer.supervised.optimizer_updates import check_optimizer, init_optimizer


class Agent(NamedTuple):
    """What `ppo` gives."""

    init: Callable[[jax.Array], TrainState]
    """`(key) -> state` at step 0, with the environments begun."""
    rollout: Phase
    update: Phase

    @property
    def program(self) -> tuple[Phase, Phase]:
        """One epoch of training: play, then learn from it."""
        return self.rollout, self.update


def ppo_loss(
    *,
    clip: float = 0.2,
    value_coefficient: float = 0.5,
    value_clip: float | None = None,
    entropy_coefficient: float = 0.01,
    normalize_advantages: bool = True,
) -> LossFunction:
    """Make the loss of proximal policy optimization.

    It reports, per example, `loss`, `policy_loss`, `value_loss` (squared error), `entropy` (nats),
    `approx_kl` (of the policy now from the one that played, nats), and `clip_fraction`.

    Args:
        clip: how far the probability of an action may move, as a share, before nothing more is
            gained by it.
        value_coefficient: weight of the value's error.
        value_clip: how far a value may move from the one of the rollout before nothing more is
            gained; None: not clipped.
        entropy_coefficient: weight of the policy's entropy, which keeps it trying.
        normalize_advantages: bring them to mean 0 and deviation 1 in each minibatch.

    Raises:
        ValueError: a setting is negative, or a clip is 0; when traced, advantages are to be
            normalised in a minibatch of one.

    Source: J. Schulman et al., Proximal Policy Optimization Algorithms, 2017, equations 7 and 9;
    `approx_kl` is the third estimator of J. Schulman, Approximating KL Divergence, 2020.

    >>> outputs = {"logits": jnp.zeros((2, 2)), "value": jnp.zeros(2)}
    >>> batch = {
    ...     "action": jnp.array([0, 1]), "log_prob": jnp.log(jnp.array([0.5, 0.25])),
    ...     "value": jnp.zeros(2), "advantage": jnp.ones(2), "target": jnp.ones(2),
    ... }
    >>> values = ppo_loss(clip=0.25, normalize_advantages=False)(outputs, batch)
    >>> values["policy_loss"].round(2).tolist(), values["clip_fraction"].tolist()
    ([-1.0, -1.25], [0.0, 1.0])
    """
    for name, bound in (("clip", clip), ("value_clip", value_clip)):
        if bound is not None and not bound > 0:
            raise ValueError(f"ppo_loss: {name} must be above 0; got {bound}")
    for name, weight in (("value", value_coefficient), ("entropy", entropy_coefficient)):
        if not weight >= 0:
            raise ValueError(f"ppo_loss: {name}_coefficient must not be negative; got {weight}")

    def ppo(outputs: Any, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        advantage = batch["advantage"]
        if normalize_advantages:
            if advantage.size == 1:
                raise ValueError(
                    "ppo_loss: advantages of a minibatch of one transition are 0 when normalised, "
                    "and nothing would be learnt of the policy: fewer minibatches, more envs or "
                    "steps, or normalize_advantages=False"
                )
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        log_ratio = distributions.log_prob(outputs, batch["action"]) - batch["log_prob"]
        ratio = jnp.exp(log_ratio)
        clipped = jnp.clip(ratio, 1 - clip, 1 + clip)
        policy_loss = -jnp.minimum(ratio * advantage, clipped * advantage)
        value_loss = (outputs["value"] - batch["target"]) ** 2
        if value_clip is not None:
            moved = jnp.clip(outputs["value"] - batch["value"], -value_clip, value_clip)
            bounded = (batch["value"] + moved - batch["target"]) ** 2
            value_loss = jnp.maximum(value_loss, bounded)
        entropy = distributions.entropy(outputs)
        loss = policy_loss + value_coefficient * value_loss - entropy_coefficient * entropy
        return {
            "loss": loss,
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "entropy": entropy,
            "approx_kl": jax.lax.stop_gradient(ratio - 1 - log_ratio),
            "clip_fraction": (jnp.abs(ratio - 1) > clip).astype(jnp.float32),
        }

    return ppo


def ppo(
    network: Any,
    env: Environment | HostEnvironments,
    optimizer: optax.GradientTransformation,
    *,
    envs: int = 8,
    steps: int = 128,
    epochs: int = 4,
    minibatches: int = 4,
    discount: float = 0.99,
    gae_lambda: float = 0.95,
    loss: LossFunction | None = None,
    target_kl: float | None = None,
    clip_norm: float | None = 0.5,
    normalize_observations: bool = False,
    normalize_rewards: bool = False,
    teacher: Any = None,
) -> Agent:
    """Make an agent that learns by proximal policy optimization.

    Its program is a `rollout` of `envs * steps` environment steps and an `update` from them; an
    epoch of `fit` is one of each. Where the environments stand, the statistics, the weights of
    lessons and the teacher are in `state.carry`, so that a run that was killed goes on bit for bit.

    Args:
        network: of policy and value, see `models.actor_critic`.
        env: to learn in; those of `from_gymnasium` step on the host.
        optimizer: of optax.
        envs: how many environments play at once; on the host, as many as were made.
        steps: of each in a rollout.
        epochs: passes over a rollout's experience.
        minibatches: that a pass is divided in: of transitions, or for a policy with memory of
            environments, each with all its steps in order.
        discount: of a reward one step later, in [0, 1].
        gae_lambda: between advantages of one step (0) and of the whole return (1).
        loss: `(outputs, batch) -> {name: values}`, `ppo_loss()` if None; `losses.total` joins it
            with others. The batch has `observation`, `action`, `log_prob`, `value`, `advantage`,
            `target`, and with a teacher `teacher`, its outputs; `[batch, ...]` each.
        target_kl: where the loss's `approx_kl` of a minibatch is above it, the rest of the update
            is left out; None: never.
        clip_norm: norm to which larger gradients are scaled; None: not clipped.
        normalize_observations: bring them to mean 0 and variance 1 by what was seen so far.
        normalize_rewards: divide them by the deviation of their discounted sums so far.
        teacher: see `distillation.teacher`: a network whose outputs the loss may read.

    Raises:
        TypeError, ValueError: the network or the teacher does not fit the environment, which is no
            environment, or gives what it does not declare, or refuses its params, or is not made as
            often as `envs`; minibatches do not divide the experience, a setting is out of range, or
            a teacher has no loss.

    Source: J. Schulman et al., Proximal Policy Optimization Algorithms, 2017; the details are those
    that S. Huang et al., The 37 Implementation Details of Proximal Policy Optimization, 2022, put
    on record, but that the end of a time limit is no end: the value of what followed stands in.
    """
    check_network(network, "ppo")
    _check(network, envs, steps, epochs, minibatches, discount, gae_lambda, target_kl, clip_norm)
    check_optimizer(optimizer, "ppo")
    if not isinstance(env, Environment | HostEnvironments):
        raise TypeError(
            "ppo learns in an Environment of trainer.rl.environments, such as from_gymnax and "
            f"from_jumanji give, or in what from_gymnasium makes; got {env!r:.100}"
        )
    if isinstance(env, HostEnvironments):
        env.check_count(envs)
    else:
        check_contract(env)
    check_policy(network, env)
    env.check(env.params)
    if teacher is not None:
        if not isinstance(teacher, Teacher):
            raise TypeError(
                "ppo needs a teacher that trainer.rl.distillation.teacher(network, directory, env) "
                f"restored; got {teacher!r:.100}"
            )
        check_policy(teacher.network, env, weights=teacher.weights, who="the teacher")
        if loss is None:
            raise ValueError(
                "ppo: a teacher is given, and no loss that reads what it says: "
                "loss=losses.total(ppo_loss(), distillation.kickstart())"
            )

    weighed = jax.jit(lambda key: init_weights(network, env, key))
    playing = jax.jit(lambda key, params: init_rollout_state(network, env, envs, key, params))

    def init(key: jax.Array) -> TrainState:
        root, network_key, env_key = jax.random.split(key, 3)
        weights = weighed(network_key)
        return TrainState.create(
            params=weights.params,
            opt_state=init_optimizer(optimizer, weights.params, "ppo"),
            model_state=weights.model_state,
            rng=root,
            carry=begun(env_key),
        )

    def begun(key: jax.Array) -> dict[str, PyTree]:
        carry: dict[str, PyTree] = {"environment": playing(key, env.params)}
        if env.lessons:
            carry["lessons"] = jnp.asarray(env.params)
        statistics: dict[str, PyTree] = {}
        if normalize_observations:
            statistics["observations"] = init_statistics(example(env.observation_space))
        if normalize_rewards:
            statistics["rewards"] = init_reward_statistics(envs)
        if statistics:
            carry["normalization"] = statistics
        if teacher is not None:
            recurrent = init_recurrent_state(teacher.network, envs)
            carry["teacher"] = {"weights": teacher.weights, "recurrent": recurrent}
        return carry

    learning = update(
        network,
        optimizer,
        loss=ppo_loss() if loss is None else loss,
        epochs=epochs,
        minibatches=minibatches,
        discount=discount,
        gae_lambda=gae_lambda,
        target_kl=target_kl,
        clip_norm=clip_norm,
        teacher=teacher,
    )
    return Agent(init, rollout(network, env, steps), learning)


def _check(
    network: Any,
    envs: int,
    steps: int,
    epochs: int,
    minibatches: int,
    discount: float,
    gae_lambda: float,
    target_kl: float | None,
    clip_norm: float | None,
) -> None:
    counts = {"envs": envs, "steps": steps, "epochs": epochs, "minibatches": minibatches}
    for name, count in counts.items():
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"ppo: {name} must be at least 1, a whole number; got {count!r}")
    for name, share in (("discount", discount), ("gae_lambda", gae_lambda)):
        if not 0 <= share <= 1:
            raise ValueError(f"ppo: {name} must be in [0, 1]; got {share}")
    for name, bound in (("target_kl", target_kl), ("clip_norm", clip_norm)):
        if bound is not None and not bound > 0:
            raise ValueError(f"ppo: {name} must be above 0, or None; got {bound}")
    whole = is_recurrent(jax.eval_shape(lambda: init_recurrent_state(network, envs)))
    units = envs if whole else envs * steps
    if units % minibatches:
        what = (
            f"{envs} environments, whole as the policy has a memory,"
            if whole
            else f"{units} transitions ({envs} envs of {steps} steps)"
        )
        raise ValueError(
            f"ppo: minibatches must divide the experience: {what} do not make {minibatches} "
            "minibatches of one size"
        )
