"""Computing again in the backward pass what would fill the memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

from models.network import Network, PyTree


def remat(network: Network, policy: Callable[..., bool] | None = None) -> Network:
    """Make a network that keeps less for its backward pass, and computes it again there.

    Outputs and gradients stay those of `network`, to rounding; a training step takes up to a third
    longer. The whole network is one stretch to compute again, so what is saved depends on the
    policy; a deep network saves most by doing so block by block, which is
    `transformer(..., remat=True)`.

    Args:
        network: any.
        policy: what is kept, one of `jax.checkpoint_policies`, such as `dots_saveable`; None
            keeps the inputs alone.

    Returns:
        The network; with `begin` and `advance` where `network` has them.

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
        @functools.partial(jax.checkpoint, policy=policy)
        def run(params: PyTree, model_state: PyTree, inputs: PyTree, key: Any) -> Any:
            return network.apply(params, model_state, inputs, key=key, train=train)

        return run(params, model_state, inputs, key)

    return network._replace(apply=apply)
