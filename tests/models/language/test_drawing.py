"""Drawing tokens by their probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.language.drawing import BLOCK, draw_by_weight, draw_tokens, keep_top_p

pytestmark = pytest.mark.usefixtures("compiled_quickly")

SHARES = jnp.array([[0.15, 0.5, 0.05, 0.3]])
KEYS = jax.random.split(jax.random.key(0), 4000)


def count(weights, columns):
    """Return how often each place of one row was drawn."""
    drawn = jax.jit(jax.vmap(lambda key: draw_by_weight(weights, key)[0]))(KEYS)
    return np.bincount(drawn, minlength=columns) / len(KEYS)


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        (0.1, [1]),
        (0.49, [1]),
        (0.51, [1, 3]),
        (0.79, [1, 3]),
        (0.81, [0, 1, 3]),
        (0.96, [0, 1, 2, 3]),
        (None, [0, 1, 2, 3]),
    ],
)
def test_top_p_keeps_the_fewest_likeliest_tokens_that_make_it_up(top_p, kept):
    found = keep_top_p(SHARES / 0.5, top_p)
    expected = np.zeros((1, 4), np.float32)
    expected[0, kept] = SHARES[0, jnp.array(kept)] / 0.5
    np.testing.assert_allclose(found, expected)


def test_top_p_is_of_what_top_k_left():
    logits = jnp.log(SHARES)  # of the two likeliest one has 0.625
    for top_p, kept in ((0.6, {1}), (0.65, {1, 3})):
        draw = jax.vmap(
            lambda key, p=top_p: draw_tokens(logits, key, temperature=1.0, top_k=2, top_p=p)
        )
        assert set(np.asarray(jax.jit(draw)(KEYS[:200]).tokens).ravel()) == kept


def test_places_are_drawn_with_their_probabilities_in_one_block_and_in_many():
    np.testing.assert_allclose(count(SHARES, 4), SHARES[0], atol=0.03)
    columns = 3 * BLOCK + 5
    places = jnp.array([0, BLOCK - 1, BLOCK, columns - 1])
    weights = jnp.zeros((1, columns)).at[0, places].set(SHARES[0])
    shares = count(weights, columns)
    np.testing.assert_allclose(shares[places], SHARES[0], atol=0.03)
    assert shares.sum() == pytest.approx(shares[places].sum())


@pytest.mark.parametrize("columns", [4, 3 * BLOCK])
def test_a_place_of_weight_0_is_never_drawn(columns, monkeypatch):
    weights = jnp.zeros((2, columns)).at[:, 1].set(0.1).at[1, columns - 2].set(1e-9)
    for share in (0.0, 1 - 2**-24):
        monkeypatch.setattr(jax.random, "uniform", lambda *a, s=share: jnp.full((2, 1), s))
        drawn = draw_by_weight(weights, KEYS[0])
        assert (jnp.take_along_axis(weights, drawn[:, None], 1) > 0).all()


@pytest.mark.parametrize("temperature", [0, 0.5, 2.0])
def test_log_probabilities_are_of_the_whole_vocabulary_at_the_temperature(temperature):
    logits = jax.random.normal(KEYS[0], (3, 9))
    drawn = draw_tokens(logits, KEYS[1], temperature=temperature, top_k=3, top_p=0.7)
    expected = jax.nn.log_softmax(logits / (temperature or 1.0))
    chosen = jnp.take_along_axis(expected, drawn.tokens[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(drawn.log_probs, chosen, rtol=1e-5)
    if temperature == 0:
        np.testing.assert_array_equal(drawn.tokens, logits.argmax(-1))


@pytest.mark.parametrize("temperature", [np.float32(0), jnp.zeros(()), 1e-38, 1e-30])
def test_a_vanishing_temperature_draws_the_likeliest_token(temperature):
    logits = 20 * jax.random.normal(KEYS[0], (3, 9))
    drawn = draw_tokens(logits, KEYS[1], temperature=temperature, top_k=None, top_p=None)
    np.testing.assert_array_equal(drawn.tokens, logits.argmax(-1))
    np.testing.assert_array_equal(drawn.log_probs, np.zeros(3))


@pytest.mark.parametrize("columns", [4, 3 * BLOCK])
@pytest.mark.parametrize("wrong", [np.inf, np.nan])
def test_logits_that_are_not_finite_draw_a_token_whose_probability_is_nan(columns, wrong):
    logits = jnp.zeros((1, columns)).at[0, 1].set(wrong)
    drawn = draw_tokens(logits, KEYS[1], temperature=1.0, top_k=None, top_p=None)
    assert 0 <= int(drawn.tokens[0]) < columns
    assert np.isnan(drawn.log_probs[0])
