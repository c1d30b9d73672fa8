"""Generating token by token."""

import functools
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models.language import generating, sampling
from models.language.sampling import make_sample

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
    assert [(x.shape, x.dtype.name) for x in written] == [
        ((2, 9), "int32"),
        ((2, 9), "float32"),
        ((2,), "int32"),
    ]
    np.testing.assert_array_equal(written.tokens, tokens[:, 3:])
    same = models.generate(DECODER, PARAMS, PROMPT, length=9, key=KEY, top_k=1)
    np.testing.assert_array_equal(same.tokens, written.tokens)


def test_equal_keys_generate_equal_tokens_and_others_do_not():
    one, two, other = (
        models.generate(DECODER, PARAMS, PROMPT, length=9, key=jax.random.key(seed)).tokens
        for seed in (0, 0, 1)
    )
    more = models.generate(DECODER, PARAMS, PROMPT, length=9, key=jax.random.key(0), top_k=99)
    np.testing.assert_array_equal(one, more.tokens)  # of all tokens
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
        shares = np.bincount(drawn.tokens[:, 0], minlength=11) / 4000
        np.testing.assert_allclose(shares, expected / expected.sum(), atol=0.04)
        assert (shares[expected == 0] == 0).all()


def test_it_compiles_once_for_each_shape():
    count = 0

    def advance(params, model_state, cache, tokens):
        nonlocal count
        count += 1
        return DECODER.decode_step(params, model_state, cache, tokens)

    sample = make_sample(DECODER.init_cache, advance)
    decoder = DECODER._replace(decode_step=advance, sample=sample)

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


def test_a_long_continuation_is_drawn_in_two_loops_with_the_same_tokens(monkeypatch):
    def draw(stop=()):
        write = jax.jit(functools.partial(DECODER.sample, length=5, stop=stop))
        return write(PARAMS, {}, PROMPT, key=KEY)

    one = draw()
    stop = int(one.tokens[0, 1])
    stopped = draw((stop,))
    monkeypatch.setattr(sampling, "LONG", 4)
    for wanted, found in ((one, draw()), (stopped, draw((stop,)))):
        np.testing.assert_array_equal(found.tokens, wanted.tokens)
        np.testing.assert_array_equal(found.lengths, wanted.lengths)
        np.testing.assert_allclose(found.log_probs, wanted.log_probs, rtol=1e-5)
    assert stopped.lengths[0] < 5


def test_an_unused_decoder_is_freed():
    decoder = models.transformer(**SETTINGS)
    models.generate(decoder, PARAMS, PROMPT, length=2, key=KEY)
    alive = weakref.ref(decoder.decode_step)
    kept = generating._compile_sample.cache_info().maxsize
    assert kept <= 8
    for _ in range(kept):
        generating._compile_sample(DECODER._replace(init=lambda key, example: ({}, {})))
    del decoder
    gc.collect()
    assert alive() is None


PROMPTS = [[3, 1, 4], [5]]


@pytest.fixture(scope="module")
def together():
    """What follows prompts of different lengths, greedily."""
    return models.generate(DECODER, PARAMS, PROMPTS, length=6, key=KEY, temperature=0)


def test_prompts_of_different_lengths_are_continued_as_each_alone(together):
    for row, prompt in enumerate(PROMPTS):
        alone = models.generate(DECODER, PARAMS, [prompt], length=6, key=KEY, temperature=0)
        np.testing.assert_array_equal(together.tokens[row], alone.tokens[0])
        np.testing.assert_allclose(together.log_probs[row], alone.log_probs[0], atol=1e-5)


def test_a_text_ends_with_the_stop_token():
    endless = models.generate(DECODER, PARAMS, PROMPT, length=9, key=KEY, temperature=2)
    stop = int(endless.tokens[0, 4])
    assert stop not in endless.tokens[0, :4]
    settings = {"length": 9, "key": KEY, "temperature": 2, "stop": [stop]}
    stopped = models.generate(DECODER, PARAMS, PROMPT, **settings)
    for row, tokens in enumerate(np.asarray(endless.tokens)):
        found = np.flatnonzero(tokens == stop)
        length = found[0] + 1 if len(found) else 9
        assert stopped.lengths[row] == length
        np.testing.assert_array_equal(stopped.tokens[row, :length], tokens[:length])
        assert not stopped.tokens[row, length:].any()
        np.testing.assert_allclose(
            stopped.log_probs[row, :length], endless.log_probs[row, :length], atol=1e-5
        )
        assert not stopped.log_probs[row, length:].any()


def test_log_probabilities_are_those_of_reading_the_whole_text():
    sampled = models.generate(
        DECODER, PARAMS, PROMPT, length=9, key=KEY, temperature=0.7, top_k=8, top_p=0.9
    )
    logits = APPLY(jnp.concatenate([PROMPT, sampled.tokens], axis=1))[:, 2:-1]
    expected = jnp.take_along_axis(
        jax.nn.log_softmax(logits / 0.7), sampled.tokens[..., None], axis=2
    )
    np.testing.assert_allclose(sampled.log_probs, expected[..., 0], atol=1e-4)


def test_streaming_passes_each_token_in_order_until_all_texts_stop(together):
    steps, columns = [], []

    def receive(step, tokens):
        steps.append(step)
        columns.append(tokens)

    settings = {"length": 6, "key": KEY, "temperature": 0}
    streamed = models.generate(DECODER, PARAMS, PROMPTS, on_token=receive, **settings)
    assert steps == list(range(6))
    np.testing.assert_array_equal(np.stack(columns, axis=1), together.tokens)
    np.testing.assert_array_equal(streamed.tokens, together.tokens)

    steps.clear()
    first = [int(token) for token in together.tokens[:, 0]]
    models.generate(DECODER, PARAMS, PROMPTS, on_token=receive, stop=first, **settings)
    assert steps == [0]


def test_what_receives_tokens_may_end_the_generation():
    def refuse(step, tokens):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        models.generate(DECODER, PARAMS, PROMPTS, length=6, key=KEY, on_token=refuse)


def test_the_loop_ends_when_all_texts_have_stopped():
    def count(stop):
        calls = []

        def advance(params, model_state, cache, tokens):
            jax.debug.callback(lambda: calls.append(1))
            return DECODER.decode_step(params, model_state, cache, tokens)

        sample = make_sample(DECODER.init_cache, advance)
        sampled = sample(PARAMS, {}, PROMPT[:, :1], key=KEY, length=6, temperature=0, stop=stop)
        jax.block_until_ready(sampled)
        jax.effects_barrier()
        return len(calls)

    first = models.generate(DECODER, PARAMS, PROMPT[:, :1], length=1, key=KEY, temperature=0)
    assert (count(()), count([int(token) for token in first.tokens[:, 0]])) == (6, 1)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"length": 0}, ValueError, "length must be at least 1; got 0"),
        ({"length": 2.0}, TypeError, "length must be a whole number; got 2.0"),
        ({"length": 10}, ValueError, "13 tokens in all, .* exceed the context of 12; shorten"),
        ({"temperature": -1.0}, ValueError, "temperature must be 0 or more, and finite; got -1.0"),
        ({"temperature": float("nan")}, ValueError, "temperature must be 0 or more"),
        ({"top_k": 0}, ValueError, "top_k must be at least 1; got 0"),
        ({"top_p": 0.0}, ValueError, "top_p must be above 0 and at most 1; got 0.0"),
        ({"top_p": 1.1}, ValueError, "top_p must be above 0 and at most 1; got 1.1"),
        ({"stop": [11]}, ValueError, r"from 0 to 10; got \[11\]"),
        ({"stop": [-1, 3]}, ValueError, r"from 0 to 10; got \[-1, 3\]"),
        ({"prompt": [[1, 2], []]}, ValueError, r"got prompts of \[2, 0\] tokens"),
        ({"prompt": []}, ValueError, r"got prompts of \[\] tokens"),
        ({"prompt": [[1.5]]}, ValueError, "whole numbers as tokens"),
        ({"prompt": TOKENS[:, :0]}, ValueError, "of at least one token"),
        ({"prompt": TOKENS[0]}, ValueError, r"got shape \(7,\)"),
        ({"prompt": jnp.ones((2, 3))}, ValueError, "takes integer tokens"),
    ],
)
def test_prompts_and_settings_out_of_range_are_errors(settings, error, message):
    asked = {"prompt": PROMPT, "length": 2, "key": KEY} | settings
    with pytest.raises(error, match=message):
        models.generate(DECODER, PARAMS, asked.pop("prompt"), **asked)
