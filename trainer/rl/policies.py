"""Policies: networks that act, with or without a memory of what they have seen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from trainer.checks.arguments import describe_value
from trainer.rl import distributions
from trainer.rl.distributions import Outputs
from trainer.rl.environments.environment import Box, Discrete, Environment, example
from trainer.rl.environments.from_gymnasium import HostEnvironments
from trainer.rl.normalization import RunningStatistics, normalize
from trainer.state import PyTree, TrainState


class PolicyWeights(NamedTuple):
    """All that a network needs to act: of a state in training, or of a teacher."""

    params: PyTree
    model_state: PyTree
    statistics: RunningStatistics | None = None
    """By which observations are normalised; None where they are taken as they are."""


def weights_of(state: TrainState) -> PolicyWeights:
    """Take from a state what its network needs to act."""
    known = state.carry.get("normalization", {})
    return PolicyWeights(state.params, state.model_state, known.get("observations"))


def init_recurrent_state(network: Any, batch: int) -> PyTree:
    """Give the memory of a policy that has seen nothing, `[batch, ...]`; () where it has none."""
    return network.begin(batch) if hasattr(network, "begin") else ()


def init_weights(
    network: Any, env: Environment | HostEnvironments, key: jax.Array
) -> PolicyWeights:
    """Initialise a network for an environment's observations."""
    observation = example(env.observation_space, 1)
    inputs = _inputs(observation, init_recurrent_state(network, 1), jnp.zeros(1, bool))
    return PolicyWeights(*network.init(key, inputs))


def _inputs(observation: PyTree, recurrent: PyTree, first: jax.Array) -> PyTree:
    """Give what a network is called with: observations alone where it has no memory."""
    if not is_recurrent(recurrent):
        return observation
    return {"observation": observation, "recurrent": recurrent, "first": first}


def is_recurrent(recurrent: PyTree) -> bool:
    """Say whether a policy with this memory, or its shapes, has any."""
    return bool(jax.tree.leaves(recurrent))


def forward(
    network: Any,
    weights: PolicyWeights,
    observation: PyTree,
    recurrent: PyTree,
    first: jax.Array,
    *,
    key: jax.Array | None = None,
    train: bool = False,
) -> tuple[dict[str, jax.Array], PyTree, PyTree]:
    """Look at one observation of each environment.

    Args:
        network: a pair (init, apply), and `init_recurrent_state` where it has a memory; see
            `models.actor_critic`.
        weights: of the network.
        observation: `[env, ...]`, as the environments gave it.
        recurrent: the memory so far `[env, ...]`, as `init_recurrent_state` gives it.
        first: bool `[env]`: a new episode begins, and the memory is to be forgotten.
        key: of what the network draws at random.
        train: whether it trains.

    Returns:
        (outputs `[env, ...]` with a `value` and what a distribution needs, memory, model state).
    """
    if weights.statistics is not None:
        observation = normalize(weights.statistics, observation)
    inputs = _inputs(observation, recurrent, first)
    outputs, model_state = network.apply(
        weights.params, weights.model_state, inputs, key=key, train=train
    )
    if not isinstance(outputs, Mapping):
        raise TypeError(
            "a policy must give a dict of outputs, a value and what says how it acts, as "
            f"models.actor_critic does; it gave {describe_value(outputs)}"
        )
    outputs = dict(outputs)
    return outputs, outputs.pop("recurrent") if is_recurrent(recurrent) else recurrent, model_state


def unroll_policy(
    network: Any,
    weights: PolicyWeights,
    observation: PyTree,
    recurrent: PyTree,
    first: jax.Array,
    *,
    key: jax.Array | None = None,
    train: bool = False,
) -> tuple[dict[str, jax.Array], PyTree, PyTree]:
    """Look at observations `[time, env, ...]`: at once without a memory, in order with one.

    Args:
        network, weights, key, train: as of `forward`.
        observation: `[time, env, ...]`.
        recurrent: the memory before the first of them `[env, ...]`.
        first: bool `[time, env]`.

    Returns:
        (outputs `[time, env, ...]`, memory after the last, model state).
    """
    if not is_recurrent(recurrent):
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (observation, first))
        outputs, _, model_state = forward(
            network, weights, flat[0], (), flat[1], key=key, train=train
        )
        shaped = jax.tree.map(lambda x: x.reshape(*first.shape, *x.shape[1:]), outputs)
        return shaped, (), model_state

    def look(carried: Any, row: Any) -> tuple[Any, Any]:
        recurrent, model_state = carried
        outputs, recurrent, model_state = forward(
            network,
            weights._replace(model_state=model_state),
            row[0],
            recurrent,
            row[1],
            key=key,
            train=train,
        )
        return (recurrent, model_state), outputs

    before = recurrent, weights.model_state
    (recurrent, model_state), outputs = lax.scan(look, before, (observation, first))
    return outputs, recurrent, model_state


def act(outputs: Outputs, key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Choose an action: drawn by the key, or the likeliest where there is none.

    Returns:
        (action `[env, ...]`, its log probability `[env]`).
    """
    action = distributions.mode(outputs) if key is None else distributions.sample(outputs, key)
    return action, distributions.log_prob(outputs, action)


def clip_action(action: jax.Array, space: Discrete | Box) -> jax.Array:
    """Cut an action to what the environment takes; what is learnt from is the action as drawn.

    Where it takes whole numbers, it is given the nearest.
    """
    if isinstance(space, Discrete):
        return action
    within = jnp.clip(action, space.low, space.high)
    whole = jnp.issubdtype(space.dtype, jnp.integer)
    return (jnp.round(within) if whole else within).astype(space.dtype)


def check_policy(
    network: Any,
    env: Environment | HostEnvironments,
    *,
    weights: PolicyWeights | None = None,
    who: str = "the policy",
) -> None:
    """Check, without computing anything, that a network can act in an environment.

    Args:
        network: to check.
        env: whose spaces it is to fit.
        weights: with which it is to act; None for those that it begins with.
        who: it is, for the message.

    Raises:
        TypeError: the network gives no dict of outputs, or its memory is not what
            `init_recurrent_state` gives.
        ValueError: its outputs do not fit the action space.
    """

    def look(key: jax.Array) -> tuple[dict[str, jax.Array], PyTree]:
        observation, recurrent = example(env.observation_space, 1), init_recurrent_state(network, 1)
        own = init_weights(network, env, key) if weights is None else weights
        outputs, after, _ = forward(network, own, observation, recurrent, jnp.zeros(1, bool))
        return outputs, (recurrent, after)

    try:
        outputs, (before, after) = jax.eval_shape(look, jax.random.key(0))
    except Exception as error:
        error.add_note(f"in looking with {who} at the observations of {env.name!r}")
        raise
    if str(before) != str(after):
        raise TypeError(f"{who} must give back its memory as it was, {before}; got {after}")
    space = env.action_space
    wanted = (
        {"logits": (space.n,)}
        if isinstance(space, Discrete)
        else {"mean": space.shape, "log_std": space.shape}
    )
    if isinstance(space, Box) and len(space.shape) != 1:
        raise ValueError(f"policies act in boxes with one axis; {env.name!r} has {space}")
    got = {name: tuple(x.shape[1:]) for name, x in outputs.items()}
    if got.get("value") != ():
        raise ValueError(f"{who} must give a value [batch] as well; it gives {got}")
    for name, shape in wanted.items():
        if got.get(name) != shape:
            count = math.prod(shape)
            continuous = ", continuous=True" if isinstance(space, Box) else ""
            raise ValueError(
                f"{who} must give {name} {['batch', *shape]} for the actions of {env.name!r}, "
                f"{space}; it gives {got}: models.actor_critic(actions={count}{continuous})"
            )
