"""The residual network."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import models

pytestmark = pytest.mark.usefixtures("compiled_quickly")

KEY = jax.random.key(1)
IMAGES = jax.random.normal(jax.random.key(2), (16, 5, 6, 2))
SMALL = {"classes": 3, "channels": (4, 6), "blocks": (1, 2)}
NETWORK = models.resnet(**SMALL)


def _inputs(shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


@functools.cache
def _variables():
    return jax.jit(NETWORK.init)(KEY, IMAGES)


@functools.partial(jax.jit, static_argnames=("network", "train"))
def _apply(network, params, model_state, images=IMAGES, *, key=None, train):
    return network.apply(params, model_state, images, key=key, train=train)


def _size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@functools.cache
def _gradients(*, remat):
    """The mean square of the outputs, its gradients and the model state afterwards."""
    network = models.resnet(**SMALL, remat=remat)
    params, model_state = _variables()

    def loss(params):
        outputs, moved = network.apply(params, model_state, IMAGES, key=None, train=True)
        return jnp.square(outputs).mean(), moved

    (value, moved), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return value, grads, moved


@pytest.mark.parametrize("shape", [(2, 8, 8, 1), (1, 32, 32, 3), (3, 5, 7, 1), (2, 1, 1, 4)])
@pytest.mark.parametrize("train", [True, False])
def test_takes_images_of_any_size(shape, train):
    network = models.resnet(classes=5)
    variables = jax.eval_shape(network.init, KEY, _inputs(shape))
    outputs, model_state = jax.eval_shape(
        lambda variables, x: network.apply(*variables, x, key=None, train=train),
        variables,
        _inputs(shape),
    )
    assert outputs.shape == (shape[0], 5)
    assert jax.tree.map(jnp.shape, model_state) == jax.tree.map(jnp.shape, variables[1])


def test_the_number_of_parameters_by_hand():
    def conv(inputs, outputs, size=3):
        return size * size * inputs * outputs + 2 * outputs  # no bias; a scale and one after it

    stem = conv(2, 4)
    first = conv(4, 4) + conv(4, 4)
    second = conv(4, 6) + conv(6, 6) + conv(4, 6, size=1) + conv(6, 6) + conv(6, 6)
    params, model_state = _variables()
    assert _size(params) == stem + first + second + 6 * 3 + 3
    assert _size(model_state) == 2 * (4 + 2 * 4 + 5 * 6)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, model_state))} == {jnp.dtype("float32")}


def test_the_settings_of_the_paper_make_twenty_layers():
    network = models.resnet(blocks=(3, 3, 3))
    params, _ = jax.eval_shape(network.init, KEY, _inputs((1, 32, 32, 3)))
    kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim in (2, 4)]
    assert len([kernel for kernel in kernels if kernel.shape[0] != 1]) == 20
    assert _size(kernels) == pytest.approx(0.27e6, rel=0.02)  # as the paper's table 6 has it


def test_kernels_keep_the_scale_of_signals_through_relus():
    network = models.resnet(channels=(64,), blocks=(1,))
    params, _ = jax.jit(network.init)(KEY, jnp.ones((1, 4, 4, 3)))
    kernel = params["stages"]["0"]["0"]["first"]["conv"]["kernel"]
    np.testing.assert_allclose(kernel.var(), 2 / (9 * 64), rtol=0.05)
    assert not np.array_equal(kernel, params["stages"]["0"]["0"]["second"]["conv"]["kernel"])


def _convolve(x, kernel, stride):
    """Convolve about the places 0, stride, 2 * stride, ... with zeros around the image."""
    size = len(kernel)
    height, width = x.shape[1:3]
    sides = (size // 2, size // 2)
    x = np.pad(x, ((0, 0), sides, sides, (0, 0)))
    return sum(
        x[:, i : i + height : stride, j : j + width : stride] @ kernel[i, j]
        for i in range(size)
        for j in range(size)
    )


def test_computes_blocks_of_two_convolutions_and_a_shortcut():
    random = np.random.default_rng(0)
    params, averages = jax.tree.map(  # no scale of 1, no bias of 0
        lambda leaf: random.uniform(0.3, 1, leaf.shape).astype(np.float32), _variables()
    )

    def normed(name, x, stride=1):
        layer, running = params, averages
        for part in name.split("/"):
            layer, running = layer[part], running[part]
        x = _convolve(x, layer["conv"]["kernel"], stride)
        x = (x - running["norm"]["mean"]) / np.sqrt(running["norm"]["var"] + 1e-5)
        return x * layer["norm"]["scale"] + layer["norm"]["bias"]

    def block(name, x, stride=1):
        change = normed(f"{name}/second", np.maximum(normed(f"{name}/first", x, stride), 0))
        kept = normed(f"{name}/shortcut", x, stride) if stride == 2 else x
        return np.maximum(kept + change, 0)

    x = np.maximum(normed("stem", np.asarray(IMAGES)), 0)
    x = block("stages/1/1", block("stages/1/0", block("stages/0/0", x), stride=2))
    assert x.shape == (16, 3, 3, 6)
    expected = x.mean(axis=(1, 2)) @ params["head"]["kernel"] + params["head"]["bias"]
    outputs, _ = _apply(NETWORK, params, averages, train=False)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4)


def test_gradients_reach_every_parameter():
    _, grads, _ = _gradients(remat=False)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert jnp.abs(grad).max() > 1e-6, jax.tree_util.keystr(path)


def test_running_averages_change_only_in_training():
    params, model_state = _variables()
    _, same = _apply(NETWORK, params, model_state, train=False)
    chex.assert_trees_all_equal(same, model_state)
    _, moved = _apply(NETWORK, params, model_state, train=True)
    for old, new in zip(jax.tree.leaves(model_state), jax.tree.leaves(moved), strict=True):
        assert (jnp.abs(new - old) > 0).all()
    conv = _convolve(np.asarray(IMAGES), np.asarray(params["stem"]["conv"]["kernel"]), 1)
    mean = moved["stem"]["norm"]["mean"]
    np.testing.assert_allclose(mean, 0.1 * conv.mean(axis=(0, 1, 2)), rtol=1e-3, atol=1e-6)
    for _ in range(60):
        trained, moved = _apply(NETWORK, params, moved, train=True)
    evaluated, _ = _apply(NETWORK, params, moved, train=False)
    np.testing.assert_allclose(evaluated, trained, rtol=0.02, atol=0.02)


def test_with_bfloat16_the_averages_stay_float32():
    params, model_state = _variables()
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (params, IMAGES))
    lowered = _apply.lower(NETWORK, half[0], model_state, half[1], train=True).as_text()
    convolutions = [line for line in lowered.splitlines() if "stablehlo.convolution" in line]
    assert convolutions
    assert all("bf16" in line and "xf32" not in line for line in convolutions)
    outputs, moved = _apply(NETWORK, half[0], model_state, half[1], train=True)
    exact, expected = _apply(NETWORK, params, model_state, train=True)
    assert outputs.dtype == jnp.bfloat16
    np.testing.assert_allclose(outputs.astype(jnp.float32), exact, rtol=0.2, atol=0.1)
    for leaf, wanted in zip(jax.tree.leaves(moved), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(leaf, wanted, rtol=0.05, atol=0.02)
        assert leaf.dtype == jnp.float32


def test_remat_changes_what_is_stored_and_no_result():
    chex.assert_trees_all_close(
        _gradients(remat=False), _gradients(remat=True), rtol=1e-3, atol=1e-6
    )

    def kept(remat):
        network = models.resnet(**SMALL, remat=remat)

        def back(params, model_state, images):
            def total(params):
                return network.apply(params, model_state, images, key=None, train=True)[0].sum()

            return jax.vjp(total, params)[1]

        return _size(jax.eval_shape(back, *_variables(), IMAGES))

    assert kept(remat=True) < 0.5 * kept(remat=False)


def test_dropout_depends_on_the_key_and_is_off_in_evaluation():
    network = models.resnet(**SMALL, dropout=0.5)
    evaluated, _ = _apply(network, *_variables(), key=KEY, train=False)
    plain, _ = _apply(NETWORK, *_variables(), train=False)
    np.testing.assert_allclose(evaluated, plain, rtol=1e-4, atol=1e-5)
    trained, again, other = (
        _apply(network, *_variables(), key=jax.random.key(seed), train=True)[0]
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(trained, again)
    assert not np.allclose(trained, other)


def test_learns_digits():
    digits = load_digits()
    order = np.random.default_rng(0).permutation(640)
    images = jnp.asarray(digits.images[order, ..., None] / 16, jnp.float32)
    labels = jnp.asarray(digits.target[order])
    network = models.resnet(channels=(8, 16), blocks=(1, 1))
    optimizer = optax.adam(1e-2)
    params, model_state = jax.jit(network.init)(KEY, images)
    opt_state = optimizer.init(params)

    @jax.jit
    def step(params, model_state, opt_state, rows):
        def loss(params):
            outputs, moved = network.apply(params, model_state, images[rows], key=None, train=True)
            entropy = optax.softmax_cross_entropy_with_integer_labels(outputs, labels[rows])
            return entropy.mean(), moved

        grads, moved = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), moved, opt_state

    for rows in np.random.default_rng(0).integers(0, 512, (80, 64)):
        params, model_state, opt_state = step(params, model_state, opt_state, rows)
    outputs, _ = network.apply(params, model_state, images[512:], key=None, train=False)
    assert (outputs.argmax(-1) == labels[512:]).mean() > 0.9


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"classes": 0}, ValueError, "classes must be at least 1; got 0"),
        ({"channels": 32}, TypeError, "channels must be a sequence of sizes"),
        ({"channels": (32, -1, 2)}, ValueError, r"channels\[1\] must be at least 1; got -1"),
        ({"blocks": (1, 0, 2)}, ValueError, r"blocks\[1\] must be at least 1; got 0"),
        ({"dropout": 1.5}, ValueError, "dropout must be at least 0 and less than 1; got 1.5"),
        ({"blocks": (2, 2)}, ValueError, r"the same stages.*\(16, 32, 64\) and blocks=\(2, 2\)"),
        ({"channels": (), "blocks": ()}, ValueError, "at least one; got channels=()"),
    ],
)
def test_settings_out_of_range_are_errors_at_once(settings, error, message):
    with pytest.raises(error, match=f"resnet: .*{message}"):
        models.resnet(**settings)


def test_wrong_inputs_are_errors():
    with pytest.raises(ValueError, match=r"\[batch, height, width, channels\]; got .*\(8, 8, 1\)"):
        models.resnet().init(KEY, jnp.ones((8, 8, 1)))
    with pytest.raises(TypeError, match="resnet takes one array"):
        models.resnet().init(KEY, {"image": jnp.ones((2, 8, 8, 1))})
