"""Networks whose initial variables are given."""

import jax
import jax.numpy as jnp
import pytest

import models

NETWORK = models.mlp(classes=2, hidden=())
INPUTS = jnp.ones((2, 3))
PARAMS, _ = NETWORK.init(jax.random.key(0), INPUTS)


def test_other_functions_and_the_type_stay():
    decoder = models.transformer(vocabulary=5, context=8, layers=1, heads=2, width=8)
    known = models.pretrained(decoder, {})
    assert type(known) is type(decoder)
    assert known[1:] == decoder[1:]


def test_host_arrays_and_other_dtypes_are_allowed():
    half = jax.tree.map(lambda leaf: jax.device_get(leaf.astype(jnp.bfloat16)), PARAMS)
    found, model_state = models.pretrained(NETWORK, half).init(jax.random.key(0), INPUTS)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(found))
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("bfloat16")}
    assert model_state == {}


def test_variables_of_another_network_are_an_error():
    other = models.pretrained(models.mlp(classes=2, hidden=(4,)), PARAMS)
    with pytest.raises(ValueError, match="pretrained params: the arrays do not fit"):
        other.init(jax.random.key(0), INPUTS)
    more = models.pretrained(NETWORK, PARAMS, {"mean": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"pretrained model_state.*mean is not expected"):
        more.init(jax.random.key(0), INPUTS)


def test_what_is_no_network_is_an_error():
    with pytest.raises(TypeError, match="pretrained takes a network, such as models.transformer"):
        models.pretrained(models.mlp, PARAMS)
