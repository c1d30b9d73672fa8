"""The multilayer perceptron."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models

pytestmark = pytest.mark.usefixtures("compiled_quickly")

KEY = jax.random.key(1)


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 8, 8, 1)])
def test_flattens_inputs_of_any_shape(shape):
    network = models.mlp(classes=5)
    inputs = jnp.ones(shape)
    params, model_state = network.init(KEY, inputs)
    assert params["hidden"]["0"]["kernel"].shape == (np.prod(shape[1:]), 128)
    assert model_state == {}
    assert network.apply(params, model_state, inputs, key=None, train=True)[0].shape == (4, 5)


def test_computes_dense_layers_with_relus_between():
    network = models.mlp(classes=2, hidden=(3, 4))
    inputs = jax.random.normal(KEY, (5, 2, 2))
    params, model_state = network.init(KEY, inputs)
    x = np.array(inputs).reshape(5, 4)
    for name in ("0", "1"):
        layer = params["hidden"][name]
        x = np.maximum(x @ layer["kernel"] + layer["bias"][None], 0)
    expected = x @ params["head"]["kernel"] + params["head"]["bias"][None]
    outputs, _ = network.apply(params, model_state, inputs, key=None, train=False)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)


def test_no_hidden_layer_is_a_linear_model():
    params, _ = models.mlp(classes=2, hidden=()).init(KEY, jnp.ones((1, 3)))
    assert jax.tree.map(jnp.shape, params) == {"head": {"bias": (2,), "kernel": (3, 2)}}


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"classes": 0}, ValueError, "classes must be at least 1; got 0"),
        ({"classes": 2.5}, TypeError, "classes must be a whole number; got 2.5"),
        ({"hidden": (8, 0)}, ValueError, r"hidden\[1\] must be at least 1; got 0"),
        ({"hidden": 8}, TypeError, "hidden must be a sequence of sizes"),
        ({"dropout": 1.0}, ValueError, "dropout must be at least 0 and less than 1; got 1.0"),
        ({"dropout": -0.1}, ValueError, "dropout must be at least 0 and less than 1"),
    ],
)
def test_settings_out_of_range_are_errors_at_once(settings, error, message):
    with pytest.raises(error, match=f"mlp: {message}"):
        models.mlp(**settings)


def test_wrong_inputs_are_errors():
    with pytest.raises(ValueError, match=r"mlp takes inputs \[batch, \.\.\.\]; got shape \(\)"):
        models.mlp().init(KEY, jnp.ones(()))
    with pytest.raises(TypeError, match=r"mlp takes one array \[batch, \.\.\.\]; got dict"):
        models.mlp().init(KEY, {"image": jnp.ones((2, 3))})
