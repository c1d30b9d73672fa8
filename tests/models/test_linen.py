"""Modules of Flax Linen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import models

INPUTS = jax.random.normal(jax.random.key(7), (4, 3))
KEY = jax.random.key(1)


class Trained(linen.Module):
    @linen.compact
    def __call__(self, x, train):
        return linen.Dropout(0.5, deterministic=not train)(x)


class Training(linen.Module):
    @linen.compact
    def __call__(self, x, *, training=False):
        return linen.Dropout(0.5, deterministic=not training)(x)


class Deterministic(linen.Module):
    @linen.compact
    def __call__(self, x, deterministic=True):
        return linen.Dropout(0.5, deterministic=deterministic)(x)


class IsTraining(linen.Module):
    @linen.compact
    def __call__(self, x, is_training: bool = False):
        return linen.Dropout(0.5, deterministic=not is_training)(x)


class Field(linen.Module):
    train: bool = False

    @linen.compact
    def __call__(self, x):
        return linen.Dropout(0.5, deterministic=not self.train)(x)


class AnyKeyword(linen.Module):
    @linen.compact
    def __call__(self, x, **flags):
        x = linen.Dropout(0.5, deterministic=not flags.get("train", False))(x)
        return linen.BatchNorm(use_running_average=not flags.get("train", False))(x)


class Frozen(linen.Module):
    @linen.compact
    def __call__(self, x, frozen=True):
        return linen.Dropout(0.5, deterministic=frozen)(x)


class OwnStatistics(linen.Module):
    @linen.compact
    def __call__(self, x, learning=False):
        mean = self.variable("batch_stats", "mean", lambda: jnp.zeros(3))
        if learning:
            mean.value = x.mean(0)
        return x - mean.value[None]


class Plain(linen.Module):
    """No flag is needed: constants, dropout of rate 0, statistics that every call updates."""

    @linen.compact
    def __call__(self, x, scaled=False):
        self.variable("constants", "turn", lambda: jnp.ones(3))
        x = linen.Dropout(0.0, deterministic=True)(x)
        return linen.BatchNorm(use_running_average=False)(x)


class Normalised(linen.Module):
    @linen.compact
    def __call__(self, x, *, train):
        return linen.BatchNorm(use_running_average=not train, momentum=0.5)(x)


class Noisy(linen.Module):
    @linen.compact
    def __call__(self, x):
        first, second = (jax.random.normal(self.make_rng("noise"), x.shape) for _ in range(2))
        return first, second


class Growing(linen.Module):
    @linen.compact
    def __call__(self, x, *, train):
        self.variable("cache", "first", lambda: jnp.ones(3))
        if train:
            self.variable("cache", "second", lambda: jnp.ones(3))
        self.sow("intermediates", "x", x)
        return x


@pytest.mark.parametrize(
    ("module", "settings"),
    [
        (Trained(), {}),
        (Training(), {}),
        (Deterministic(), {}),
        (IsTraining(), {}),
        (Field(), {}),
        (Field(train=True), {}),
        (linen.Dropout(0.5), {}),
        (Frozen(), {"train_flag": "not frozen"}),
        (Training(), {"train_flag": "training"}),
        (linen.Sequential([Trained()]), {"train_flag": "train"}),
    ],
)
def test_the_module_is_told_whether_it_trains(module, settings):
    network = models.from_linen(module, **settings)
    variables = network.init(KEY, INPUTS)
    evaluated, _ = network.apply(*variables, INPUTS, key=KEY, train=False)
    np.testing.assert_array_equal(evaluated, INPUTS)
    trained, _ = network.apply(*variables, INPUTS, key=KEY, train=True)
    assert (trained == 0).any()
    with pytest.raises(ValueError, match="draws random numbers and key is None; pass"):
        network.apply(*variables, INPUTS, key=None, train=True)


def test_collections_other_than_params_are_model_state():
    network = models.from_linen(Normalised())
    params, model_state = network.init(KEY, INPUTS)
    assert jax.tree.map(jnp.shape, params) == {"BatchNorm_0": {"scale": (3,), "bias": (3,)}}
    _, updated = network.apply(params, model_state, INPUTS, key=None, train=True)
    mean = updated["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(mean, 0.5 * INPUTS.mean(0), rtol=1e-5, atol=1e-6)


def test_statistics_change_if_the_flag_is_named():
    """Not told, they stay 0 and 1 for ever, and training is evaluation."""
    for module, flag in ((AnyKeyword(), "train"), (OwnStatistics(), "learning")):
        network = models.from_linen(module, train_flag=flag)
        params, before = network.init(KEY, INPUTS)
        _, after = network.apply(params, before, INPUTS, key=KEY, train=True)
        assert not jnp.array_equal(jax.tree.leaves(before)[0], jax.tree.leaves(after)[0])
        _, still = network.apply(params, after, INPUTS, key=KEY, train=False)
        assert jax.tree.leaves(still)[0] is jax.tree.leaves(after)[0]


@pytest.mark.parametrize(
    ("module", "parts"),
    [
        (AnyKeyword(), r"Dropout_0/Dropout\(deterministic=True\), BatchNorm_0/BatchNorm\(use_run"),
        (Frozen(), r"Dropout_0/Dropout\(deterministic=True\)"),
        (OwnStatistics(), "batch_stats, which a call does not update"),
        (linen.Sequential([linen.Dense(2), linen.Dropout(0.1, deterministic=True)]), "layers_1/Dr"),
    ],
)
@pytest.mark.parametrize("wrap", [lambda init: init, jax.jit], ids=["eager", "jit"])
def test_a_module_with_an_unknown_flag_is_an_error(module, parts, wrap):
    network = models.from_linen(module)
    with pytest.raises(ValueError, match=rf"finds no flag .* mode: .*{parts}.*train_flag='is_tr"):
        wrap(network.init)(KEY, INPUTS)
    models.from_linen(module, train_flag=None).init(KEY, INPUTS)


def test_a_module_that_needs_no_flag_needs_none():
    network = models.from_linen(Plain())
    variables = network.init(KEY, INPUTS)
    _, after = network.apply(*variables, INPUTS, key=None, train=True)
    assert not jnp.array_equal(after["batch_stats"]["BatchNorm_0"]["mean"], jnp.zeros(3))


def test_a_flag_that_the_call_does_not_take_is_an_error():
    with pytest.raises(TypeError, match=r"train_flag must name .*got 'training'.*is: x, frozen"):
        models.from_linen(Frozen(), train_flag="training")

    class Needing(linen.Module):
        def __call__(self, x, learning):
            return x

    with pytest.raises(TypeError, match=r"from_linen calls module\(inputs\).*'learning'"):
        models.from_linen(Needing())
    models.from_linen(Needing(), train_flag="learning")


def test_a_stream_of_another_name_is_derived_from_the_key():
    network = models.from_linen(Noisy())
    variables = network.init(KEY, INPUTS)
    draws = [
        network.apply(*variables, INPUTS, key=key, train=True)[0]
        for key in (KEY, KEY, jax.random.key(2))
    ]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0][0] != draws[0][1]).all()
    assert (draws[0][0] != draws[2][0]).all()


def test_parameters_are_unboxed():
    boxed = linen.with_partitioning(linen.initializers.ones, ("in", "out"))
    network = models.from_linen(linen.Dense(2, kernel_init=boxed))
    params, model_state = network.init(KEY, INPUTS)
    assert isinstance(params["kernel"], jax.Array)
    outputs, _ = network.apply(params, model_state, INPUTS, key=None, train=True)
    np.testing.assert_allclose(outputs[:, 0], INPUTS.sum(1), rtol=1e-5, atol=1e-6)


def test_a_call_must_not_add_variables_and_intermediates_are_dropped():
    network = models.from_linen(Growing())
    params, model_state = network.init(KEY, INPUTS)
    assert jax.tree.map(jnp.shape, model_state) == {"cache": {"first": (3,)}}
    network.apply(params, model_state, INPUTS, key=None, train=False)
    with pytest.raises(ValueError, match=r"after the call: .*cache/second is not expected"):
        network.apply(params, model_state, INPUTS, key=None, train=True)


@pytest.mark.parametrize("module", [linen.Dense, nnx.Linear(1, 1, rngs=nnx.Rngs(0)), None])
def test_another_kind_of_module_is_an_error(module):
    with pytest.raises(TypeError, match=r"takes a flax\.linen module.*see from_nnx"):
        models.from_linen(module)
