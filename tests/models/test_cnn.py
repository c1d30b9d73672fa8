"""The convolutional network."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import models

pytestmark = pytest.mark.usefixtures("compiled_quickly")

KEY = jax.random.key(1)


@pytest.mark.parametrize(
    ("shape", "features"), [((2, 8, 8, 1), 256), ((2, 28, 28, 3), 3136), ((1, 5, 7, 1), 64)]
)
def test_takes_images_of_several_sizes(shape, features):
    network = models.cnn(classes=5)
    variables = jax.eval_shape(network.init, KEY, jax.ShapeDtypeStruct(shape, jnp.float32))
    assert variables[0]["dense"]["kernel"].shape == (features, 128)
    outputs, _ = jax.eval_shape(
        lambda variables, x: network.apply(*variables, x, key=None, train=True),
        variables,
        jax.ShapeDtypeStruct(shape, jnp.float32),
    )
    assert outputs.shape == (shape[0], 5)


def test_computes_convolutions_maxima_and_a_dense_head():
    network = models.cnn(classes=2, channels=(3,), hidden=4)
    images = jax.random.normal(KEY, (2, 4, 4, 1))
    params, model_state = jax.jit(network.init)(KEY, images)
    assert model_state == {}
    layer = params["convolutions"]["0"]
    padded = np.pad(np.array(images), ((0, 0), (1, 1), (1, 1), (0, 0)))
    x = sum(
        padded[:, i : i + 4, j : j + 4] @ np.array(layer["kernel"][i, j])
        for i in range(3)
        for j in range(3)
    )
    x = np.maximum(x + np.array(layer["bias"]), 0)
    x = np.max([x[:, i::2, j::2] for i in range(2) for j in range(2)], axis=0)
    for name in ("dense", "head"):
        x = x.reshape(2, -1) @ np.array(params[name]["kernel"]) + np.array(params[name]["bias"])
        x = np.maximum(x, 0) if name == "dense" else x
    outputs, _ = network.apply(params, model_state, images, key=None, train=False)
    np.testing.assert_allclose(outputs, x, rtol=1e-4, atol=1e-5)


def test_batch_norm_keeps_running_averages_in_the_model_state():
    network = models.cnn(channels=(2,), hidden=4, batch_norm=True)
    images = jax.random.normal(KEY, (64, 4, 4, 1))
    params, model_state = jax.jit(network.init)(KEY, images)
    assert "bias" not in params["convolutions"]["0"]
    assert jax.tree.map(jnp.shape, model_state) == {"norms": {"0": {"mean": (2,), "var": (2,)}}}
    train = jax.jit(lambda state: network.apply(params, state, images, key=None, train=True))
    for _ in range(60):
        trained, model_state = train(model_state)
    evaluated, _ = network.apply(params, model_state, images, key=None, train=False)
    np.testing.assert_allclose(evaluated, trained, rtol=1e-2, atol=1e-2)


def test_learns_digits():
    digits = load_digits()
    order = np.random.default_rng(0).permutation(640)
    images = jnp.asarray(digits.images[order, ..., None] / 16, jnp.float32)
    labels = jnp.asarray(digits.target[order])
    network = models.cnn(channels=(8, 16), hidden=32)
    optimizer = optax.adam(1e-2)
    params, _ = jax.jit(network.init)(KEY, images)
    opt_state = optimizer.init(params)

    @jax.jit
    def step(params, opt_state, rows):
        def loss(params):
            outputs, _ = network.apply(params, {}, images[rows], key=None, train=True)
            return optax.softmax_cross_entropy_with_integer_labels(outputs, labels[rows]).mean()

        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
        return optax.apply_updates(params, updates), opt_state

    for rows in np.random.default_rng(0).integers(0, 512, (100, 64)):
        params, opt_state = step(params, opt_state, rows)
    outputs, _ = network.apply(params, {}, images[512:], key=None, train=False)
    assert (outputs.argmax(-1) == labels[512:]).mean() > 0.9


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"classes": 0}, ValueError, "classes must be at least 1; got 0"),
        ({"channels": 32}, TypeError, "channels must be a sequence of sizes"),
        ({"channels": (32, -1)}, ValueError, r"channels\[1\] must be at least 1; got -1"),
        ({"hidden": 0}, ValueError, "hidden must be at least 1; got 0"),
        ({"dropout": 1.5}, ValueError, "dropout must be at least 0 and less than 1; got 1.5"),
    ],
)
def test_settings_out_of_range_are_errors_at_once(settings, error, message):
    with pytest.raises(error, match=f"cnn: {message}"):
        models.cnn(**settings)


def test_wrong_inputs_are_errors():
    with pytest.raises(ValueError, match=r"\[batch, height, width, channels\]; got .*\(8, 8, 1\)"):
        models.cnn().init(KEY, jnp.ones((8, 8, 1)))
    with pytest.raises(ValueError, match=r"at least 4x4; got shape \(2, 8, 3, 1\); pass fewer"):
        models.cnn().init(KEY, jnp.ones((2, 8, 3, 1)))


def test_wrong_inputs_of_apply_are_errors_too():
    network = models.cnn(channels=(2,), hidden=4)
    variables = jax.jit(network.init)(KEY, jnp.ones((2, 4, 4, 1)))
    with pytest.raises(ValueError, match=r"\[batch, height, width, channels\]; got .*\(4, 4, 1\)"):
        network.apply(*variables, jnp.ones((4, 4, 1)), key=None, train=False)
    with pytest.raises(ValueError, match=r"dense/kernel must be \(18, 4\), got \(8, 4\)"):
        network.apply(*variables, jnp.ones((2, 6, 6, 1)), key=None, train=False)
