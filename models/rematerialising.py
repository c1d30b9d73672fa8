"""Rematerialisation: recompute activations in the backward pass to save memory."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax

from models.network import Network, PyTree


def remat(network: Network, policy: Callable[..., bool] | None = None) -> Network:
    """Wrap a network so that it stores less for its backward pass and recomputes it there.

    Outputs and gradients equal those of `network` up to rounding; a training step takes up to a
    third longer. The whole network is recomputed at once, so the savings depend on the policy; a
    deep network saves most block by block, as `transformer(..., remat=True)` does.

    Args:
        network: any network.
        policy: what to store, one of `jax.checkpoint_policies`, such as `dots_saveable`; None
            stores the inputs only.

    Returns:
        The network, with all other fields of `network`.

    Source: Chen, Xu, Zhang and Guestrin, "Training Deep Nets with Sublinear Memory Cost" (2016).

    >>> import jax.numpy as jnp
    >>> import models
    >>> network = models.remat(models.mlp(classes=3), jax.checkpoint_policies.dots_saveable)
    >>> params, model_state = network.init(jax.random.key(0), jnp.ones((4, 8)))
    >>> network.apply(params, model_state, jnp.ones((4, 8)), key=None, train=True)[0].shape
    (4, 3)
    """

    def apply(
        params: PyTree,
        model_state: PyTree,
        inputs: PyTree,
        *,
        key: jax.Array | None,
        train: bool,
    ) -> tuple[PyTree, PyTree]:
        run = jax.checkpoint(functools.partial(network.apply, train=train), policy=policy)
        return run(params, model_state, inputs, key=key)

    return network._replace(apply=apply)
