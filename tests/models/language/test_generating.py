"""Generating token by token."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models.language import generating

pytestmark = pytest.mark.usefixtures("compiled_quickly")

KEY = jax.random.key(1)
SETTINGS = {"vocabulary": 11, "context": 12, "layers": 2, "heads": 2, "width": 8}
TOKENS = jax.random.randint(KEY, (2, 7), 0, 11)
DECODER = models.transformer(**SETTINGS)
PARAMS, _ = jax.jit(DECODER.init)(jax.random.key(0), TOKENS)
PROMPT = TOKENS[:, :3]
APPLY = jax.jit(lambda tokens: DECODER.apply(PARAMS, {}, tokens, key=None, train=False)[0])


def test_the_likeliest_tokens_equal_those_of_repeated_calls_of_apply():
    tokens = jnp.zeros((2, 12), int).at[:, :3].set(PROMPT)
    for i in range(3, 12):
        tokens = tokens.at[:, i].set(APPLY(tokens)[:, i - 1].argmax(-1))
    written = models.generate(DECODER, PARAMS, PROMPT, length=9, key=KEY, temperature=0)
    assert (written.shape, written.dtype) == ((2, 9), jnp.int32)
    np.testing.assert_array_equal(written, tokens[:, 3:])
    same = models.generate(DECODER, PARAMS, PROMPT, length=9, key=KEY, top_k=1)
    np.testing.assert_array_equal(same, written)


def test_equal_keys_generate_equal_tokens_and_others_do_not():
    one, two, other = (
        models.generate(DECODER, PARAMS, PROMPT, length=9, key=jax.random.key(seed))
        for seed in (0, 0, 1)
    )
    more = models.generate(DECODER, PARAMS, PROMPT, length=9, key=jax.random.key(0), top_k=99)
    np.testing.assert_array_equal(one, more)  # of all tokens
    np.testing.assert_array_equal(one, two)
    assert (one != other).any()


def test_tokens_are_drawn_with_their_probabilities():
    prompt = jnp.repeat(PROMPT[:1], 4000, axis=0)
    scores = np.array(APPLY(jnp.pad(PROMPT, ((0, 0), (0, 9))))[0, 2])
    for temperature, top_k in ((0.5, None), (1.0, None), (2.0, 3)):
        expected = np.array(jax.nn.softmax(scores / temperature))
        if top_k:
            expected = np.where(scores >= np.sort(scores)[-top_k], expected, 0)
        drawn = models.generate(
            DECODER, PARAMS, prompt, length=1, key=KEY, temperature=temperature, top_k=top_k
        )
        shares = np.bincount(drawn[:, 0], minlength=11) / 4000
        np.testing.assert_allclose(shares, expected / expected.sum(), atol=0.04)
        assert (shares[expected == 0] == 0).all()


def test_it_compiles_once_for_each_shape():
    count = 0

    def advance(params, model_state, cache, tokens):
        nonlocal count
        count += 1
        return DECODER.decode_step(params, model_state, cache, tokens)

    decoder = DECODER._replace(decode_step=advance)

    def write(seed=0, length=2, prompt=PROMPT, **settings):
        nonlocal count
        count = 0
        params = jax.tree.map(lambda x: x * (1 + seed), PARAMS)
        key = jax.random.key(seed)
        models.generate(decoder, params, prompt, length=length, key=key, **settings)
        return count

    assert write() > 0
    for again in ({"seed": 1}, {"temperature": 0.7}, {"temperature": 2}, {"prompt": PROMPT * 0}):
        assert write(**again) == 0
    assert write(prompt=np.array(PROMPT)) == 0
    assert write(length=3) > 0


def test_an_unused_decoder_is_freed():
    decoder = models.transformer(**SETTINGS)
    models.generate(decoder, PARAMS, PROMPT, length=2, key=KEY)
    alive = weakref.ref(decoder.decode_step)
    kept = generating._compile_generate.cache_info().maxsize
    assert kept <= 8
    for _ in range(kept):
        generating._compile_generate(DECODER._replace(init=lambda key, example: ({}, {})))
    del decoder
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"length": 0}, ValueError, "length must be at least 1; got 0"),
        ({"length": 2.0}, TypeError, "length must be a whole number; got 2.0"),
        ({"length": 10}, ValueError, "13 tokens in all, .* exceed the context of 12; shorten"),
        ({"temperature": -1.0}, ValueError, "temperature must be 0 or more, and finite; got -1.0"),
        ({"temperature": float("nan")}, ValueError, "temperature must be 0 or more"),
        ({"top_k": 0}, ValueError, "top_k must be at least 1; got 0"),
        ({"prompt": TOKENS[:, :0]}, ValueError, "of at least one token"),
        ({"prompt": TOKENS[0]}, ValueError, r"got shape \(7,\)"),
        ({"prompt": jnp.ones((2, 3))}, ValueError, "takes integer tokens"),
    ],
)
def test_prompts_and_settings_out_of_range_are_errors(settings, error, message):
    asked = {"prompt": PROMPT, "length": 2, "key": KEY} | settings
    with pytest.raises(error, match=message):
        models.generate(DECODER, PARAMS, asked.pop("prompt"), **asked)
