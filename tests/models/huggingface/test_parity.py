"""Every family computes and writes what transformers does, whose results lie beside its weights."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models

pytestmark = pytest.mark.usefixtures("compiled_quickly")

FIXTURES = Path(__file__).parent / "fixtures"
FAMILIES = sorted(folder.name for folder in FIXTURES.iterdir())


def read(name, **settings):
    """The network, its parameters, and what transformers computed."""
    with np.load(FIXTURES / name / "expected.npz") as file:
        expected = dict(file)
    return *models.from_huggingface(FIXTURES / name, **settings), expected


def padded(tokens, mask):
    """The inputs for prompts that are padded on the left."""
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    return {
        "tokens": jnp.asarray(tokens, jnp.int32),
        "segments": jnp.asarray(mask, jnp.int32),
        "positions": jnp.asarray(positions, jnp.int32),
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_of_a_text_past_the_window_and_of_padded_prompts(name):
    network, params, expected = read(name)
    missing = expected["text"].shape[1] - expected["prompts"].shape[1]
    left = ((0, 0), (missing, 0))
    mask = np.concatenate([np.ones(expected["text"].shape, bool), np.pad(expected["mask"], left)])
    tokens = np.concatenate([expected["text"], np.pad(expected["prompts"], left)])
    logits, _ = jax.jit(functools.partial(network.apply, key=None, train=False))(
        params, {}, padded(tokens, mask)
    )
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits[0], expected["text_logits"][0], atol=1e-4, rtol=0)
    for got, wanted, seen in zip(
        logits[1:, missing:], expected["prompt_logits"], expected["mask"], strict=True
    ):
        np.testing.assert_allclose(got[seen], wanted[seen], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_likeliest_tokens_after_padded_prompts_with_the_cache(name):
    network, params, expected = read(name, scan=True)  # compiles one block instead of all
    length = expected["written"].shape[1]
    sample = functools.partial(network.sample, length=length, temperature=0)
    prompts = padded(expected["prompts"], expected["mask"])
    sampled = jax.jit(sample)(params, {}, prompts, key=jax.random.key(0))
    np.testing.assert_array_equal(sampled.tokens, expected["written"])


@pytest.mark.parametrize("name", FAMILIES)
def test_live_transformers_agree_on_what_is_written(name, tmp_path):
    """Where it is installed."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    network, params, expected = read(name)
    models.to_huggingface(network, params, tmp_path, like=FIXTURES / name)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager"
    )
    text = torch.from_numpy(expected["text"]).long()
    with torch.no_grad():
        logits = loaded.eval()(text).logits.numpy()
    np.testing.assert_allclose(logits, expected["text_logits"], atol=1e-5, rtol=0)
