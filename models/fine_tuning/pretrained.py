"""Networks whose initial variables are given, as those of a trained one."""

from __future__ import annotations

from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from models.argument_checks import require_fit
from models.network import PyTree

N = TypeVar("N")


def pretrained(network: N, params: PyTree, model_state: PyTree | None = None) -> N:
    """Return a network whose `init` returns these variables, to train it on.

    Nothing is copied: the state of `task.init` holds the arrays that are given, where they lie, and
    `trainer.fit` trains on a copy of them.

    Args:
        network: a network, a decoder, or another with more functions.
        params: its parameters, in any dtype; arrays on the host are placed on the first device.
        model_state: its other variables; None for none.

    Returns:
        The network, of the same type, with the other functions unchanged.

    Raises:
        TypeError: the network is something else.
        ValueError: from `init`, the variables do not fit the network.

    >>> import models
    >>> network = models.mlp(classes=2, hidden=())
    >>> params, _ = network.init(jax.random.key(0), jnp.ones((1, 3)))
    >>> known, _ = pretrained(network, params).init(jax.random.key(1), jnp.ones((8, 3)))
    >>> all(map(lambda old, new: old is new, jax.tree.leaves(params), jax.tree.leaves(known)))
    True
    """
    if not (isinstance(network, tuple) and hasattr(network, "_replace")):
        raise TypeError(
            f"pretrained takes a network, such as models.transformer(...); got {network!r:.100}"
        )
    known: Any = network
    given = jax.tree.map(_to_device, (params, {} if model_state is None else model_state))

    def init(key: jax.Array, example: PyTree) -> tuple[PyTree, PyTree]:
        wanted = jax.eval_shape(known.init, key, example)
        remedy = "pass the variables of this network, with inputs of these shapes"
        for name, shapes, found in zip(("params", "model_state"), wanted, given, strict=True):
            require_fit(f"pretrained {name}", shapes, found, remedy=remedy)
        return given

    changed: N = known._replace(init=init)
    return changed


def _to_device(leaf: Any) -> jax.Array:
    return leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf)
