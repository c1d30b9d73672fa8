"""Initializers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.initializers import lecun_normal

pytestmark = pytest.mark.usefixtures("compiled_quickly")


@pytest.mark.parametrize("shape", [(16, 8), (2, 2, 4), (1, 1)])
def test_the_values_equal_those_of_jax(shape):
    key = jax.random.key(3)
    expected = jax.nn.initializers.lecun_normal()(key, shape, jnp.float32)
    np.testing.assert_allclose(lecun_normal(key, shape), expected, rtol=1e-5, strict=True)


def test_the_variance_is_one_over_the_fan_in():
    kernel = lecun_normal(jax.random.key(0), (5, 5, 8, 100))
    np.testing.assert_allclose(kernel.var(), 1 / 200, rtol=0.05)
    assert abs(kernel).max() < 2 / 0.8796 / np.sqrt(200)


def test_the_dtype_is_the_requested_one():
    assert lecun_normal(jax.random.key(0), (4, 4), jnp.bfloat16).dtype == jnp.bfloat16
