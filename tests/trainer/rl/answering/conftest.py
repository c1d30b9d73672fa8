"""A language model of pairs of tokens, small enough to train in a second, and its tokenizer."""

from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

LETTERS = ".abcdefg"
"""The vocabulary; the first ends an answer."""

STOP = 0


class Sampled(NamedTuple):
    tokens: jax.Array
    log_probs: jax.Array
    lengths: jax.Array


def sample(params, model_state, prompt, *, key, length, temperature, top_k, top_p, stop):
    """Sample from the pairs: the next token depends on the last one alone."""

    def step(carried, key):
        last, running = carried
        logits = params["pairs"][last] + model_state.get("bias", 0)
        scale = temperature if temperature else 1.0
        drawn = jax.random.categorical(key, logits / scale) if temperature else logits.argmax(-1)
        chances = jax.nn.log_softmax(logits / scale)
        log_prob = jnp.take_along_axis(chances, drawn[:, None], axis=1)[:, 0]
        row = jnp.where(running, drawn, 0), jnp.where(running, log_prob, 0.0), running
        return (drawn, running & ~jnp.isin(drawn, jnp.array(stop))), row

    last = prompt["tokens"][:, -1]
    begun = last, jnp.ones(last.shape, bool)
    _, (tokens, log_probs, there) = jax.lax.scan(step, begun, jax.random.split(key, length))
    return Sampled(tokens.T.astype(jnp.int32), log_probs.T, there.sum(0).astype(jnp.int32))


def pairs(*, context=16):
    """The network: logits of the next token for each token, uniform at the start."""

    def init(key, inputs):
        return {"pairs": 0.1 * jax.random.normal(key, (len(LETTERS), len(LETTERS)))}, {}

    def apply(params, model_state, inputs, *, key, train):
        tokens = inputs["tokens"]
        if tokens.shape[1] > context:
            raise ValueError(f"{tokens.shape[1]} tokens are more than the limit of {context}")
        return params["pairs"][tokens] + model_state.get("bias", 0), model_state

    return SimpleNamespace(init=init, apply=apply, sample=sample)


TOKENIZER = SimpleNamespace(
    encode=lambda text: [0 if letter == "." else ord(letter) - 96 for letter in text],
    decode=lambda ids: "".join(LETTERS[number] for number in ids),
)


def says_next(examples, tokens, lengths):
    """Half for the letter after the prompt's last, and half if nothing follows it."""
    right = tokens[:, 0] == examples["prompt"][:, -1] + 1
    return right * (0.5 + 0.5 * (lengths == 2))


@pytest.fixture(scope="session")
def network():
    """The network of pairs, with a context of 16."""
    return pairs()


@pytest.fixture(scope="session")
def tokenizer():
    """Its tokenizer."""
    return TOKENIZER


@pytest.fixture(scope="session")
def reward():
    """The jittable reward: 1 for the next letter alone, 0.5 if others follow."""
    return says_next
