"""Every network that the package exports keeps the contract of `models.Network`."""

import jax
import jax.numpy as jnp
import pytest

import models

IMAGES = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
TOKENS = jax.ShapeDtypeStruct((2, 4), jnp.int32)
NETWORKS = {
    "actor_critic": (models.actor_critic(actions=2), IMAGES),
    "captioner": (models.captioner(vocabulary=5, context=4), {"image": IMAGES, "tokens": TOKENS}),
    "cnn": (models.cnn(batch_norm=True), IMAGES),
    "mlp": (models.mlp(dropout=0.5), IMAGES),
    "resnet": (models.resnet(), IMAGES),
    "transformer": (models.transformer(vocabulary=5, context=4), TOKENS),
}


def _kinds(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


def test_every_exported_network_is_listed_here():
    kinds = {"ActorCritic", "Decoder", "Network"}
    wrappers = {"from_linen", "from_nnx", "lora", "remat", "with_reference"}
    made = {n for n in models.__all__ if getattr(models, n).__annotations__.get("return") in kinds}
    assert made - wrappers == set(NETWORKS)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("train", [False, True])
def test_a_call_keeps_the_structure_of_the_model_state(name, train):
    network, inputs = NETWORKS[name]
    key = jax.random.key(0)
    params, model_state = jax.eval_shape(network.init, key, inputs)
    outputs, after = jax.eval_shape(
        lambda *given: network.apply(*given, key=key, train=train), params, model_state, inputs
    )
    assert _kinds(after) == _kinds(model_state)
    assert all(leaf.shape[0] == 2 for leaf in jax.tree.leaves(outputs))
