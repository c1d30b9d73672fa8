"""Rematerialisation: recomputing instead of storing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models

pytestmark = pytest.mark.usefixtures("compiled_quickly")

KEY = jax.random.key(1)
INPUTS = jax.random.normal(KEY, (4, 3))
NETWORK = models.mlp(classes=2, hidden=(8, 8), dropout=0.5)
PARAMS, _ = jax.jit(NETWORK.init)(KEY, INPUTS)
POLICIES = [
    None,
    jax.checkpoint_policies.dots_saveable,
    jax.checkpoint_policies.everything_saveable,
]


def loss(network):
    def value(params):
        outputs, model_state = network.apply(params, {}, INPUTS, key=KEY, train=True)
        assert model_state == {}
        return jnp.square(outputs).sum()

    return value


@pytest.fixture(scope="module")
def expected():
    """The loss and its gradients without rematerialisation."""
    return jax.jit(jax.value_and_grad(loss(NETWORK)))(PARAMS)


@pytest.mark.parametrize("policy", POLICIES)
def test_outputs_and_gradients_do_not_change(expected, policy):
    got = jax.jit(jax.value_and_grad(loss(models.remat(NETWORK, policy))))(PARAMS)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_what_the_policy_does_not_store_is_recomputed():
    def dots(network):
        return str(jax.make_jaxpr(jax.grad(loss(network)))(PARAMS)).count("dot_general[")

    plain = dots(NETWORK)
    none, saveable, everything = (dots(models.remat(NETWORK, policy)) for policy in POLICIES)
    assert none > saveable == everything == plain


def test_batch_statistics_are_returned():
    network = models.cnn(classes=2, channels=(2,), hidden=4, batch_norm=True)
    images = jax.random.normal(KEY, (2, 4, 4, 1))
    variables = jax.jit(network.init)(KEY, images)
    for train in (False, True):
        expected, got = (
            jax.jit(
                lambda net=net, train=train: net.apply(*variables, images, key=KEY, train=train)
            )()
            for net in (network, models.remat(network))
        )
        for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_decoder_stays_a_decoder():
    decoder = models.transformer(vocabulary=3, context=4, layers=1, heads=1, width=4)
    remade = models.remat(decoder)
    assert isinstance(remade, models.Decoder)
    assert remade[2:] == decoder[2:]
