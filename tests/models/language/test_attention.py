"""Attention and rotary positions."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import models
from models.language.attention import CrossAttention, SelfAttention, TokenPlaces
from models.language.attention_kernels import has_kernel
from models.language.rotary import apply_rotary, compute_rotary
from models.language.visibility import Visibility

pytestmark = pytest.mark.usefixtures("compiled_quickly")

KEY = jax.random.key(1)


def at(heads, position):
    """Turn heads `[size]` as if they stood at this position."""
    turn = compute_rotary(jnp.array([position]), heads.size)
    return apply_rotary(heads.reshape(1, 1, 1, -1), turn).ravel()


def test_products_of_rotated_heads_depend_only_on_the_distance():
    query, key = jax.random.normal(KEY, (2, 8))
    products = [at(query, q) @ at(key, k) for q, k in ((5, 2), (3, 0), (103, 100))]
    np.testing.assert_allclose(products, products[0], rtol=1e-4)
    assert abs(at(query, 5) @ at(key, 3) - products[0]) > 1e-2
    np.testing.assert_allclose(at(query, 7) @ at(key, 7), query @ key, rtol=1e-5)


def test_pairs_rotate_at_their_own_frequency():
    turned = at(jnp.array([1.0, 1.0, 0.0, 0.0]), 3)  # frequencies 1 and 0.01
    np.testing.assert_allclose(
        turned, [np.cos(3), np.cos(0.03), np.sin(3), np.sin(0.03)], rtol=1e-5
    )


def test_rotation_keeps_the_dtype():
    assert at(jnp.ones(4, jnp.bfloat16), 3).dtype == jnp.bfloat16


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


@pytest.mark.parametrize("causal", [True, False])
def test_self_attention_equals_numpys(causal):
    module = SelfAttention(8, 2, models.Architecture(), scale=1.0, rngs=nnx.Rngs(0))
    x = np.array(jax.random.normal(KEY, (3, 5, 8)))
    query, key, value = (
        np.array(x @ layer.kernel[...]).reshape(3, 5, 2, 4)
        for layer in (module.query, module.key, module.value)
    )
    mixed = np.zeros((3, 5, 2, 4))
    for head in range(2):
        scores = query[:, :, head] @ key[:, :, head].swapaxes(1, 2) / 2
        if causal:
            scores = np.where(np.tril(np.ones((5, 5))), scores, -np.inf)
        mixed[:, :, head] = softmax(scores) @ value[:, :, head]
    expected = mixed.reshape(3, 5, 8) @ module.out.kernel[...]
    visibility = Visibility() if causal else None
    outputs = nnx.jit(
        lambda module, x: module(x, None, TokenPlaces(visibility=visibility), False)[0]
    )(module, x)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)


def test_cross_attention_equals_numpys():
    module = CrossAttention(8, 2, scale=1.0, rngs=nnx.Rngs(0))
    x, other = (np.array(jax.random.normal(KEY, (3, n, 8))) for n in (5, 6))
    query = np.array(x @ module.query.kernel[...]).reshape(3, 5, 2, 4)
    key, value = (
        np.array(other @ layer.kernel[...]).reshape(3, 6, 2, 4)
        for layer in (module.key, module.value)
    )
    mixed = np.zeros((3, 5, 2, 4))
    for head in range(2):
        scores = query[:, :, head] @ key[:, :, head].swapaxes(1, 2) / 2
        mixed[:, :, head] = softmax(scores) @ value[:, :, head]
    outputs = nnx.jit(lambda module, x, other: module(x, module.project(other)))(module, x, other)
    expected = mixed.reshape(3, 5, 8) @ module.out.kernel[...]
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("capability", "dtype", "size", "has"),
    [
        ("8.0", jnp.bfloat16, 64, True),
        ("9.0", jnp.float16, 128, True),
        ("7.5", jnp.float16, 64, False),
        ("9.0", jnp.float32, 64, False),
        ("9.0", jnp.bfloat16, 36, False),
        ("9.0", jnp.bfloat16, 256, False),
        ("gfx90a", jnp.bfloat16, 64, False),
    ],
)
def test_the_fused_kernel_is_for_16_bit_floats_on_newer_gpus(capability, dtype, size, has):
    device = SimpleNamespace(compute_capability=capability)
    assert has_kernel(device, jnp.dtype(dtype), size) is has
