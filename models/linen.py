"""Networks of Flax Linen modules."""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy as jnp
from flax import core, linen
from flax.errors import InvalidRngError

from models.network import Network, PyTree, named_key, require_fit, shapes_of


def from_linen(module: linen.Module) -> Network:
    """Make a network of a Flax Linen module, called as `module(inputs)`.

    The parameters are the collection `params`; the model state is all other collections that
    `init` makes, `{"batch_stats": {...}}` for instance. They are mutable in training only.
    Partitioning metadata is stripped, since parameters are plain arrays.

    Whether it trains, the module is told by the keywords that its `__call__` takes, among
    `train`, `training` and `deterministic` (the opposite). Random numbers come from `key`: the
    streams `params` and `dropout` by name, and a stream of another name, as Linen has it, from
    that of `params`, which in `apply` serves only this.

    Args:
        module: a Linen module, unbound.

    Returns:
        The network.

    Raises:
        TypeError: `module` is no Linen module.
        ValueError: on a call, the module needs random numbers and `key` is None, or it changed
            the structure of the model state.

    >>> network = from_linen(linen.Dense(2))
    >>> params, model_state = network.init(jax.random.key(0), jnp.ones((4, 3)))
    >>> jax.tree.map(jnp.shape, params), model_state
    ({'bias': (2,), 'kernel': (3, 2)}, {})
    >>> network.apply(params, model_state, jnp.ones((4, 3)), key=None, train=False)[0].shape
    (4, 2)
    """
    if not isinstance(module, linen.Module):
        kind = f"the class {module.__name__}" if isinstance(module, type) else type(module).__name__
        raise TypeError(
            f"from_linen takes a flax.linen module, such as linen.Dense(2); got {kind}; "
            "for an nnx.Module see from_nnx"
        )
    taken = inspect.signature(module.__call__).parameters

    def mode(train: bool) -> dict[str, Any]:
        told = {"train": train, "training": train, "deterministic": not train}
        return {name: value for name, value in told.items() if name in taken}

    def init(key: jax.Array, example: PyTree) -> tuple[PyTree, PyTree]:
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes_of(example))
        variables = _plain(module.init(_streams(key), zeros, **mode(train=False)))
        return variables.pop("params", {}), variables

    def apply(
        params: PyTree,
        model_state: PyTree,
        inputs: PyTree,
        *,
        key: jax.Array | None,
        train: bool,
    ) -> tuple[PyTree, PyTree]:
        try:
            outputs, updated = module.apply(
                {"params": params, **model_state},
                inputs,
                rngs=_streams(key),
                mutable=list(model_state) if train else [],
                **mode(train),
            )
        except InvalidRngError as error:
            if key is not None:
                raise
            raise ValueError(
                "the module draws random numbers and key is None; give apply a typed key, such as "
                f"state.key('network') ({error})"
            ) from error
        updated = {**model_state, **_plain(updated)}
        remedy = "a module may not add or reshape variables when it is called"
        require_fit("model_state after the call", model_state, updated, remedy=remedy)
        return outputs, updated

    return Network(init, apply)


def _streams(key: jax.Array | None) -> dict[str, jax.Array]:
    return {} if key is None else {name: named_key(key, name) for name in ("params", "dropout")}


def _plain(variables: Any) -> dict[str, Any]:
    """Turn collections into nested dicts of arrays, without Linen's boxes."""
    return core.unfreeze(linen.meta.unbox(variables))
