"""Attention in blocks equals JAX's, in values and gradients, and computes fewer scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.attention import BLOCK, MOST_BLOCKS, attend, attend_in_blocks
from trainer.phases.jaxprs import count_flops


def draw(time, positions=None, batch=2, heads=3, size=8):
    keys = jax.random.split(jax.random.key(0), 4)
    lengths = time, positions or time, positions or time, time
    return [
        jax.random.normal(key, (batch, length, heads, size))
        for key, length in zip(keys, lengths, strict=True)
    ]


def plain(query, key, value, *, causal):
    return jax.nn.dot_product_attention(query, key, value, is_causal=causal, implementation="xla")


def differentiate(function, query, key, value, weights, causal):
    def total(query, key, value):
        mixed = function(query, key, value, causal=causal)
        return (mixed * weights).sum(), mixed

    (_, mixed), grads = jax.value_and_grad(total, (0, 1, 2), has_aux=True)(query, key, value)
    return mixed, *grads


@pytest.mark.parametrize(
    ("time", "positions", "causal"),
    [
        (1, None, True),
        (5, None, False),
        (BLOCK, None, True),
        (2 * BLOCK + 1, None, True),
        (4 * BLOCK + 3, None, True),
        (2 * BLOCK, 7, False),
        (3 * BLOCK, 2 * BLOCK, True),
        (2 * BLOCK, 3 * BLOCK, True),
    ],
)
def test_values_and_gradients_are_those_of_jax(time, positions, causal):
    query, key, value, weights = draw(time, positions)
    found = differentiate(attend_in_blocks, query, key, value, weights, causal)
    expected = differentiate(plain, query, key, value, weights, causal)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)


def test_large_scores_do_not_overflow():
    query, key, value, _ = draw(2 * BLOCK)
    mixed = attend_in_blocks(1e6 * query, key, value, causal=True)
    expected = plain(1e6 * query, key, value, causal=True)
    np.testing.assert_allclose(mixed, expected, rtol=2e-5, atol=2e-5)


def test_no_later_position_has_an_effect():
    query, key, value, _ = draw(3 * BLOCK)
    before = attend_in_blocks(query, key, value, causal=True)
    place = BLOCK + 5
    changed = (x.at[:, place:].add(1.0) for x in (query, key, value))
    after = attend_in_blocks(*changed, causal=True)
    np.testing.assert_array_equal(before[:, :place], after[:, :place])
    assert not np.array_equal(before[:, place:], after[:, place:])


def test_causal_blocks_spare_scores():
    inputs = draw(MOST_BLOCKS * BLOCK)[:3]
    whole, spared = (
        count_flops(jax.make_jaxpr(lambda *x, c=causal: attend_in_blocks(*x, causal=c))(*inputs))
        for causal in (False, True)
    )
    assert spared == pytest.approx(whole * 5 / 8)


def test_attention_on_a_cpu_is_that_in_blocks():
    query, key, value, _ = draw(2 * BLOCK)
    found = jax.jit(lambda *x: attend(*x, causal=True))(query, key, value)
    expected = jax.jit(lambda *x: attend_in_blocks(*x, causal=True))(query, key, value)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_small_floats_keep_their_dtype(dtype):
    query, key, value, _ = (x.astype(dtype) for x in draw(BLOCK))
    assert attend(query, key, value, causal=True).dtype == dtype
