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


@pytest.mark.parametrize("module", [Trained(), Training(), Deterministic()])
def test_the_module_is_told_whether_it_trains(module):
    network = models.from_linen(module)
    variables = network.init(KEY, INPUTS)
    evaluated, _ = network.apply(*variables, INPUTS, key=KEY, train=False)
    np.testing.assert_array_equal(evaluated, INPUTS)
    trained, _ = network.apply(*variables, INPUTS, key=KEY, train=True)
    assert (trained == 0).any()
    with pytest.raises(ValueError, match="draws random numbers and key is None; give"):
        network.apply(*variables, INPUTS, key=None, train=True)


def test_collections_other_than_params_are_model_state():
    network = models.from_linen(Normalised())
    params, model_state = network.init(KEY, INPUTS)
    assert jax.tree.map(jnp.shape, params) == {"BatchNorm_0": {"scale": (3,), "bias": (3,)}}
    _, updated = network.apply(params, model_state, INPUTS, key=None, train=True)
    mean = updated["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(mean, 0.5 * INPUTS.mean(0), rtol=1e-5, atol=1e-6)


def test_a_stream_of_another_name_draws_from_the_key():
    network = models.from_linen(Noisy())
    variables = network.init(KEY, INPUTS)
    draws = [
        network.apply(*variables, INPUTS, key=key, train=True)[0]
        for key in (KEY, KEY, jax.random.key(2))
    ]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0][0] != draws[0][1]).all()
    assert (draws[0][0] != draws[2][0]).all()


def test_parameters_leave_their_boxes():
    boxed = linen.with_partitioning(linen.initializers.ones, ("in", "out"))
    network = models.from_linen(linen.Dense(2, kernel_init=boxed))
    params, model_state = network.init(KEY, INPUTS)
    assert isinstance(params["kernel"], jax.Array)
    outputs, _ = network.apply(params, model_state, INPUTS, key=None, train=True)
    np.testing.assert_allclose(outputs[:, 0], INPUTS.sum(1), rtol=1e-5, atol=1e-6)


def test_a_call_may_not_add_variables_and_intermediates_are_dropped():
    network = models.from_linen(Growing())
    params, model_state = network.init(KEY, INPUTS)
    assert jax.tree.map(jnp.shape, model_state) == {"cache": {"first": (3,)}}
    network.apply(params, model_state, INPUTS, key=None, train=False)
    with pytest.raises(ValueError, match=r"after the call: .*cache/second is not expected"):
        network.apply(params, model_state, INPUTS, key=None, train=True)


@pytest.mark.parametrize("module", [linen.Dense, nnx.Linear(1, 1, rngs=nnx.Rngs(0)), None])
def test_another_kind_of_module_is_refused(module):
    with pytest.raises(TypeError, match=r"takes a flax\.linen module.*see from_nnx"):
        models.from_linen(module)
