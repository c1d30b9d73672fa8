"""Policies: networks that act, recurrent or not."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from trainer.checks.arguments import describe_value
from trainer.host.exception_notes import annotate_errors
from trainer.placement.constraints import gather_params
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
    """Statistics that normalize observations; None if they are not normalized."""


def weights_of(state: TrainState) -> PolicyWeights:
    """Return what a state's network needs to act."""
    known = state.carry.get("normalization", {})
    params = gather_params(state.params)
    return PolicyWeights(params, state.model_state, known.get("observations"))


def init_recurrent_state(network: Any, batch: int) -> PyTree:
    """Return the recurrent state at the start of an episode, `[batch, ...]`; () if it has none."""
    begin = getattr(network, "init_recurrent_state", None)
    return () if begin is None else begin(batch)


def init_weights(
    network: Any, env: Environment | HostEnvironments, key: jax.Array
) -> PolicyWeights:
    """Initialize a network for an environment's observations."""
    observation = example(env.observation_space, 1)
    inputs = _build_inputs(observation, init_recurrent_state(network, 1), jnp.zeros(1, bool))
    return PolicyWeights(*network.init(key, inputs))


def _build_inputs(observation: PyTree, recurrent: PyTree, first: jax.Array) -> PyTree:
    """Return the inputs of a network: only observations if it is not recurrent."""
    named = {"observation": observation, "recurrent": recurrent, "first": first}
    return named if is_recurrent(recurrent) else observation


def is_recurrent(recurrent: PyTree) -> bool:
    """Return whether a policy with this recurrent state, or its shapes, is recurrent."""
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
    """Apply a policy to one observation of each environment.

    Args:
        network: a pair (init, apply), with `init_recurrent_state` if it is recurrent; see
            `models.actor_critic`.
        weights, key, train: of the network.
        observation: `[env, ...]`, as the environments returned it.
        recurrent: recurrent state `[env, ...]`, at first of `init_recurrent_state`.
        first: bool `[env]`: an episode begins, and the recurrent state is reset.

    Returns:
        (outputs `[env, ...]` with a `value` and the parameters of a distribution, recurrent state,
        model state).

    Raises:
        TypeError: the outputs are no dict.
    """
    if weights.statistics is not None:
        observation = normalize(weights.statistics, observation)
    inputs = _build_inputs(observation, recurrent, first)
    outputs, model_state = network.apply(
        weights.params, weights.model_state, inputs, key=key, train=train
    )
    if not isinstance(outputs, Mapping):
        raise TypeError(
            "a policy must return a dict of outputs, a value and the parameters of its action's "
            f"distribution, as models.actor_critic does; it returned {describe_value(outputs)}"
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
    """Apply a policy to observations `[time, env, ...]`: in order if it is recurrent, else at once.

    `recurrent` is the recurrent state before the first of them, `[env, ...]`.

    Returns:
        (outputs `[time, env, ...]`, recurrent state after the last, model state).
    """
    run = functools.partial(forward, network, key=key, train=train)
    if not is_recurrent(recurrent):
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (observation, first))
        outputs, _, model_state = run(weights, flat[0], (), flat[1])
        shaped = jax.tree.map(lambda x: x.reshape(*first.shape, *x.shape[1:]), outputs)
        return shaped, (), model_state

    def step(carried: Any, row: Any) -> tuple[Any, Any]:
        recurrent, model_state = carried
        current = weights._replace(model_state=model_state)
        outputs, recurrent, model_state = run(current, row[0], recurrent, row[1])
        return (recurrent, model_state), outputs

    before = recurrent, weights.model_state
    (recurrent, model_state), outputs = lax.scan(step, before, (observation, first))
    return outputs, recurrent, model_state


def act(outputs: Outputs, key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Choose an action: sampled with the key, or the likeliest without one.

    Returns:
        (action `[env, ...]`, its log probability `[env]`).
    """
    action = distributions.mode(outputs) if key is None else distributions.sample(outputs, key)
    return action, distributions.log_prob(outputs, action)


def clip_action(action: jax.Array, space: Discrete | Box) -> jax.Array:
    """Clip an action to the bounds of its space; the policy learns from the action as sampled.

    It is rounded if the space is of whole numbers.
    """
    if isinstance(space, Discrete):
        return action
    clipped = jnp.clip(action, space.low, space.high)
    whole = jnp.issubdtype(space.dtype, jnp.integer)
    return (jnp.round(clipped) if whole else clipped).astype(space.dtype)


def check_policy(
    network: Any,
    env: Environment | HostEnvironments,
    *,
    weights: PolicyWeights | None = None,
    who: str = "the policy",
) -> None:
    """Check, without computing anything, that a network can act in an environment.

    `weights` are the initial ones if None; `who` is what the network is, for the message.

    Raises:
        TypeError: the network returns no dict of outputs, or a recurrent state of another shape
            than that of its `init_recurrent_state`.
        ValueError: its outputs do not fit the action space.
    """

    def apply(key: jax.Array) -> tuple[dict[str, jax.Array], PyTree]:
        observation, recurrent = example(env.observation_space, 1), init_recurrent_state(network, 1)
        own = init_weights(network, env, key) if weights is None else weights
        outputs, after, _ = forward(network, own, observation, recurrent, jnp.zeros(1, bool))
        return outputs, (recurrent, after)

    with annotate_errors(f"in applying {who} to the observations of {env.name!r}"):
        outputs, (before, after) = jax.eval_shape(apply, jax.random.key(0))
    if str(before) != str(after):
        raise TypeError(f"{who} must keep the shapes of its recurrent state, {before}; got {after}")
    space = env.action_space
    if isinstance(space, Discrete):
        wanted, remedy = {"logits": (space.n,)}, f"actions={space.n}"
    elif len(space.shape) == 1:
        wanted = {"mean": space.shape, "log_std": space.shape}
        remedy = f"actions={space.shape[0]}, continuous=True"
    else:
        raise ValueError(f"policies act in boxes with one axis; {env.name!r} has {space}")
    got = {name: tuple(x.shape[1:]) for name, x in outputs.items()}
    if got.get("value") != ():
        raise ValueError(f"{who} must return a value [batch] as well; it returns {got}")
    for name, shape in wanted.items():
        if got.get(name) != shape:
            raise ValueError(
                f"{who} must return {name} {['batch', *shape]} for the actions of {env.name!r}, "
                f"{space}; it returns {got}: models.actor_critic({remedy})"
            )
