"""Segments: several texts in a row, and padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models

pytestmark = pytest.mark.usefixtures("compiled_quickly")

SETTINGS = {"vocabulary": 11, "context": 12, "layers": 2, "heads": 2, "width": 8}
DECODER = models.transformer(**SETTINGS)
TEXTS = [[3, 1, 4, 1, 5], [9, 2, 6], [5, 8, 9, 7, 9, 3]]
ROW = {
    "tokens": jnp.array([TEXTS[0] + TEXTS[1] + [0, 10] + TEXTS[2]]),
    "segments": jnp.array([[1] * 5 + [2] * 3 + [0] * 2 + [3] * 6]),
    "positions": jnp.array([[*range(5), *range(3), 7, 7, *range(6)]]),
}
"""Longer than the context, as its texts are not."""
PLACES = [slice(0, 5), slice(5, 8), slice(10, 16)]
PARAMS, _ = jax.jit(DECODER.init)(jax.random.key(0), ROW)


@jax.jit
def read(inputs):
    return DECODER.apply(PARAMS, {}, inputs, key=None, train=False)[0]


@pytest.fixture(scope="module")
def alone():
    """The logits of each text, read without the others."""
    padded = jnp.array([text + [0] * (6 - len(text)) for text in TEXTS])
    return [logits[: len(text)] for text, logits in zip(TEXTS, read(padded), strict=True)]


def test_texts_in_one_row_have_the_logits_of_each_alone(alone):
    (logits,) = read(ROW)
    for place, expected in zip(PLACES, alone, strict=True):
        np.testing.assert_allclose(logits[place], expected, rtol=1e-5, atol=1e-5)


def test_no_token_sees_another_segment():
    before = read(ROW)[0]
    after = read(ROW | {"tokens": ROW["tokens"].at[0, 5:10].set(7)})[0]
    np.testing.assert_array_equal(before[:5], after[:5])
    np.testing.assert_array_equal(before[10:], after[10:])
    assert (before[5:8] != after[5:8]).any(-1).all()


def test_padding_may_hold_any_token_and_position_and_has_finite_logits():
    before = read(ROW)[0]
    for token, position in ((-1, -7), (99, 99)):
        changed = ROW | {
            "tokens": ROW["tokens"].at[0, 8:10].set(token),
            "positions": ROW["positions"].at[0, 8:10].set(position),
        }
        after = read(changed)[0]
        assert jnp.isfinite(after).all()
        np.testing.assert_array_equal(after[jnp.r_[0:8, 10:16]], before[jnp.r_[0:8, 10:16]])


def test_a_position_outside_the_context_has_nan_logits():
    for position in (-1, 12):
        logits = read(ROW | {"positions": ROW["positions"].at[0, 15].set(position)})[0]
        assert jnp.isnan(logits[15]).all()


def test_padding_passes_no_gradient_and_no_nan():
    padded = jax.tree.map(lambda x: jnp.pad(x, ((0, 1), (0, 0))), ROW)  # and a row of padding

    def weigh(params):
        logits = DECODER.apply(params, {}, padded, key=None, train=True)[0]
        return jnp.where(padded["segments"][..., None] > 0, logits, 0).sum()

    grads = jax.jit(jax.grad(weigh))(PARAMS)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("scan", [False, True])
def test_prompts_padded_on_the_left_are_read_and_continued_row_by_row(alone, scan):
    decoder = models.transformer(**SETTINGS, scan=scan)
    first = {  # the first three tokens of each text, of the second only two
        "tokens": jnp.array([TEXTS[0][:3], [0, *TEXTS[1][:2]], TEXTS[2][:3]]),
        "segments": jnp.array([[1, 1, 1], [0, 1, 1], [1, 1, 1]]),
        "positions": jnp.array([[0, 1, 2], [0, 0, 1], [0, 1, 2]]),
    }
    second = jnp.array([TEXTS[0][3:5], [TEXTS[1][2], 0], TEXTS[2][3:5]])

    @jax.jit
    def write(params):
        if scan:
            blocks = [params["blocks"][str(i)] for i in range(2)]
            params = params | {"blocks": jax.tree.map(lambda *x: jnp.stack(x), *blocks)}
        cache = decoder.init_cache(params, {}, first, 8)
        begun, cache = decoder.decode_step(params, {}, cache, first)
        pieces = []
        for index in range(2):
            logits, cache = decoder.decode_step(params, {}, cache, second[:, index : index + 1])
            pieces.append(logits)
        return jnp.concatenate([begun, *pieces], axis=1)

    logits = write(PARAMS)
    for row, (start, stop) in enumerate([(0, 5), (1, 4), (0, 5)]):
        expected = alone[row][: stop - start]
        np.testing.assert_allclose(logits[row, start:stop], expected, rtol=1e-5, atol=1e-5)
