"""Attention in blocks equals JAX's, in values and gradients, and computes fewer scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.language.attention_kernels import BLOCK, MOST_BLOCKS, attend, attend_in_blocks
from models.language.visibility import Visibility
from trainer.phases.jaxprs import count_flops

pytestmark = pytest.mark.usefixtures("compiled_quickly")


def draw(time, positions=None, batch=2, heads=3, size=8):
    keys = jax.random.split(jax.random.key(0), 4)
    lengths = time, positions or time, positions or time, time
    return [
        jax.random.normal(key, (batch, length, heads, size))
        for key, length in zip(keys, lengths, strict=True)
    ]


CAUSAL = Visibility()
SEGMENTS = jnp.array([[1] * 50 + [2] * 70 + [0] * 8, [0] * 3 + [1] * 125])
"""Of two rows of `2 * BLOCK` positions."""


def plain(query, key, value, visibility):
    mask = None
    if visibility is not None:
        mask = visibility.compute_mask((0, query.shape[1]), key.shape[1])[:, None]
    return jax.nn.dot_product_attention(query, key, value, mask=mask, implementation="xla")


def differentiate(function, query, key, value, weights, visibility):
    def total(query, key, value):
        mixed = function(query, key, value, visibility)
        return (mixed * weights).sum(), mixed

    compute = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))
    (_, mixed), grads = compute(query, key, value)
    return mixed, *grads


@pytest.mark.parametrize(
    ("time", "positions", "visibility"),
    [
        (1, None, CAUSAL),
        (5, None, None),
        (BLOCK, None, CAUSAL),
        (2 * BLOCK + 1, None, CAUSAL),
        (4 * BLOCK + 3, None, CAUSAL),
        (2 * BLOCK, 7, None),
        (3 * BLOCK, 2 * BLOCK, CAUSAL),
        (2 * BLOCK, 3 * BLOCK, CAUSAL),
        (2 * BLOCK, None, Visibility(None, SEGMENTS, SEGMENTS)),
        (3, 2 * BLOCK, Visibility(jnp.array(BLOCK), SEGMENTS[:, BLOCK : BLOCK + 3], SEGMENTS)),
    ],
)
def test_values_and_gradients_are_those_of_jax(time, positions, visibility):
    query, key, value, weights = draw(time, positions)
    found = differentiate(attend_in_blocks, query, key, value, weights, visibility)
    expected = differentiate(plain, query, key, value, weights, visibility)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)


def test_large_scores_do_not_overflow():
    query, key, value, _ = draw(2 * BLOCK)
    mixed = jax.jit(lambda *x: attend_in_blocks(*x, CAUSAL))(1e6 * query, key, value)
    expected = jax.jit(lambda *x: plain(*x, CAUSAL))(1e6 * query, key, value)
    np.testing.assert_allclose(mixed, expected, rtol=2e-5, atol=2e-5)


def test_no_later_position_has_an_effect():
    query, key, value, _ = draw(3 * BLOCK)
    compute = jax.jit(lambda *x: attend_in_blocks(*x, CAUSAL))
    before = compute(query, key, value)
    place = BLOCK + 5
    changed = (x.at[:, place:].add(1.0) for x in (query, key, value))
    after = compute(*changed)
    np.testing.assert_array_equal(before[:, :place], after[:, :place])
    assert not np.array_equal(before[:, place:], after[:, place:])


def test_causal_blocks_spare_scores():
    inputs = draw(MOST_BLOCKS * BLOCK)[:3]
    whole, spared = (
        count_flops(jax.make_jaxpr(lambda *x, c=seen: attend_in_blocks(*x, c))(*inputs))
        for seen in (None, CAUSAL)
    )
    assert spared == pytest.approx(whole * 5 / 8)


def test_attention_on_a_cpu_is_that_in_blocks():
    query, key, value, _ = draw(2 * BLOCK)
    found = jax.jit(lambda *x: attend(*x, CAUSAL))(query, key, value)
    expected = jax.jit(lambda *x: attend_in_blocks(*x, CAUSAL))(query, key, value)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_small_floats_keep_their_dtype(dtype):
    query, key, value, _ = (x.astype(dtype) for x in draw(BLOCK))
    assert jax.eval_shape(lambda *x: attend(*x, CAUSAL), query, key, value).dtype == dtype
