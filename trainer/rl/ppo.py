"""Proximal policy optimization: the program of a rollout and an update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from trainer.losses.loss import LossFunction
from trainer.phases.phase import Phase
from trainer.placement.hoisting import jit_hoisted
from trainer.rl.distillation import Teacher
from trainer.rl.environments.environment import Environment, check_contract, example
from trainer.rl.environments.from_gymnasium import HostEnvironments
from trainer.rl.normalization import init_reward_statistics, init_statistics
from trainer.rl.policies import check_policy, init_recurrent_state, init_weights, is_recurrent
from trainer.rl.ppo_config import PPOConfig
from trainer.rl.ppo_update import update
from trainer.rl.rollouts import init_rollout_state, rollout
from trainer.state import PyTree, TrainState
from trainer.supervised.network_checks import check_network
from trainer.supervised.optimizer_updates import check_optimizer, init_optimizer


class Agent(NamedTuple):
    """The result of `ppo` or `grpo`: an initial state, and the phases that train it."""

    init: Callable[[jax.Array], TrainState]
    """`(key) -> state` at step 0; for `ppo` with an episode begun in each environment."""
    rollout: Phase
    update: Phase

    @property
    def program(self) -> tuple[Phase, Phase]:
        """One epoch of training: a rollout, and the update that learns from it."""
        return self.rollout, self.update


def ppo(
    network: Any,
    env: Environment | HostEnvironments,
    optimizer: optax.GradientTransformation,
    config: PPOConfig = PPOConfig(),
    *,
    loss: LossFunction | None = None,
    teacher: Any = None,
) -> Agent:
    """Build an agent that learns by proximal policy optimization.

    Its program is a `rollout` of `envs * steps` environment steps and an `update` from them; an
    epoch of `fit` is one of each. The state of the environments, the statistics, the weights of
    lessons and the teacher are in `state.carry`, so a killed run resumes bit for bit.

    Args:
        network: of policy and value, see `models.actor_critic`.
        env: to learn in; those of `from_gymnasium` step on the host.
        optimizer: of optax.
        config: all other settings.
        loss: `(outputs, batch) -> {name: values}`, `ppo_loss()` if None; `losses.total` adds
            others to it. The batch has `observation`, `action`, `log_prob`, `value`, `advantage`,
            `target`, and with a teacher `teacher`, its outputs; `[batch, ...]` each.
        teacher: see `distillation.restore_teacher`: a network whose outputs the loss may read.

    Raises:
        TypeError, ValueError: the network or the teacher does not fit the environment; `env` is no
            environment, returns what it does not declare, refuses its params, or has another count
            than `config.envs`; the minibatches do not divide the experience; or a teacher has no
            loss that reads it.

    Source: J. Schulman et al., Proximal Policy Optimization Algorithms, 2017; the details are those
    of S. Huang et al., The 37 Implementation Details of Proximal Policy Optimization, 2022, except
    that a time limit does not end the return: the value of the next observation stands in.
    """
    check_network(network, "ppo")
    recurrent = jax.eval_shape(lambda: init_recurrent_state(network, config.envs))
    config.check_minibatches(recurrent=is_recurrent(recurrent))
    check_optimizer(optimizer, "ppo")
    _check_environment(env, config.envs)
    check_policy(network, env)
    if teacher is not None:
        _check_teacher(teacher, env, loss)
    init_weights_of = jit_hoisted(lambda key: init_weights(network, env, key))
    begin = jax.jit(lambda key, params: init_rollout_state(network, env, config.envs, key, params))

    def init(key: jax.Array) -> TrainState:
        root, network_key, env_key = jax.random.split(key, 3)
        weights = init_weights_of(network_key)
        return TrainState.create(
            params=weights.params,
            opt_state=init_optimizer(optimizer, weights.params, "ppo"),
            model_state=weights.model_state,
            rng=root,
            carry=init_carry(env_key),
        )

    def init_carry(key: jax.Array) -> dict[str, PyTree]:
        carry: dict[str, PyTree] = {"environment": begin(key, env.params)}
        if env.lessons:
            carry["lessons"] = jnp.asarray(env.params)
        statistics: dict[str, PyTree] = {}
        if config.normalize_observations:
            statistics["observations"] = init_statistics(example(env.observation_space))
        if config.normalize_rewards:
            statistics["rewards"] = init_reward_statistics(config.envs)
        if statistics:
            carry["normalization"] = statistics
        if teacher is not None:
            recurrent = init_recurrent_state(teacher.network, config.envs)
            carry["teacher"] = {"weights": teacher.weights, "recurrent": recurrent}
        return carry

    learn = update(network, optimizer, config, loss=loss, teacher=teacher)
    return Agent(init, rollout(network, env, config.steps), learn)


def _check_environment(env: Any, envs: int) -> None:
    if not isinstance(env, Environment | HostEnvironments):
        raise TypeError(
            "ppo learns in an Environment of trainer.rl.environments, such as from_gymnax and "
            f"from_jumanji return, or in what from_gymnasium makes; got {env!r:.100}"
        )
    if isinstance(env, HostEnvironments):
        env.check_count(envs)
    else:
        check_contract(env)
    env.check(env.params)


def _check_teacher(
    teacher: Any, env: Environment | HostEnvironments, loss: LossFunction | None
) -> None:
    if not isinstance(teacher, Teacher):
        raise TypeError(
            "ppo needs a teacher that trainer.rl.distillation.restore_teacher(network, directory, "
            f"env) restored; got {teacher!r:.100}"
        )
    check_policy(teacher.network, env, weights=teacher.weights, who="the teacher")
    if loss is None:
        raise ValueError(
            "ppo: a teacher needs a loss that reads its outputs: "
            "loss=losses.total(ppo_loss(), distillation.kickstart())"
        )
