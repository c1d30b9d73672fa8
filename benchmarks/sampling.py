"""How many tokens per second does a transformer generate, against a loop in bare JAX?

Baseline: the same network and cache, in a loop written out: read the prompt, then `lax.scan` over
`decode_step`, each token drawn by `jax.random.categorical`, all compiled as one. Where torch and
`transformers` are installed, the `generate` of the latter samples too, on a CPU and from the same
weights, those of a random Llama.

Measured: continuations of 32 random prompts of 32 tokens by 96 tokens, float32, none of which stops
earlier: whole calls until all tokens are there. Contestants take turns; ratios are taken round by
round. Also: greedily, from the 50 likeliest tokens, and from 0.9 of the probability.
"""

import functools
import importlib.util
import tempfile
from typing import NamedTuple

import _measuring
import jax
import jax.numpy as jnp
import numpy as np

import models

LIBRARY, BARE, TRANSFORMERS = "library", "bare JAX", "transformers"
WAYS = {"greedy": {"temperature": 0}, "top_k=50": {"top_k": 50}, "top_p=0.9": {"top_p": 0.9}}
LEAST = {BARE: 0.95, TRANSFORMERS: 2.0}


class Size(NamedTuple):
    """Of the network, and of what it generates."""

    vocabulary: int = 4096
    layers: int = 6
    heads: int = 8
    kv_heads: int = 4
    width: int = 256
    hidden: int = 704
    batch_size: int = 32
    prompt: int = 32
    """Tokens of a prompt."""
    length: int = 96
    """Tokens that follow it."""

    @property
    def tokens(self):
        """Generated in a call."""
        return self.batch_size * self.length


QUICK = Size(32, 1, 2, 1, 8, 8, batch_size=2, prompt=3, length=4)


def build(size):
    """Build a network of the size, with random parameters."""
    architecture = models.Architecture(
        kv_heads=size.kv_heads, gated=True, activation="silu", embedding_scale=1.0
    )
    network = models.transformer(
        vocabulary=size.vocabulary,
        context=size.prompt + size.length,
        layers=size.layers,
        heads=size.heads,
        width=size.width,
        hidden=size.hidden,
        tied=False,
        architecture=architecture,
    )
    example = jnp.zeros((1, size.prompt), jnp.int32)
    return network, jax.jit(network.init)(jax.random.key(0), example)[0]


def write_out(network, length):
    """Build the loop in bare JAX."""

    @jax.jit
    def run(params, prompt, key):
        def step(carry, key):
            cache, logits = carry
            token = jax.random.categorical(key, logits).astype(jnp.int32)
            logits, cache = network.decode_step(params, {}, cache, token[:, None])
            return (cache, logits[:, -1]), token

        cache = network.init_cache(params, {}, prompt, prompt.shape[1] + length)
        logits, cache = network.decode_step(params, {}, cache, prompt)
        _, tokens = jax.lax.scan(step, (cache, logits[:, -1]), jax.random.split(key, length))
        return tokens.T

    return run


def build_llama(size):
    """Build a random Llama of `transformers`, which never stops."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=size.prompt + size.length,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def read(llama):
    """Build the library's network with the weights of a Llama."""
    with tempfile.TemporaryDirectory() as folder:
        llama.save_pretrained(folder)
        return models.from_huggingface(folder)


def sample_llama(llama, prompt, length):
    """Build a function that samples from a Llama of `transformers`."""
    import torch

    inputs = torch.tensor(np.array(prompt, np.int64))

    def run():
        with torch.inference_mode():
            tokens = llama.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=length,
                min_new_tokens=length,
                do_sample=True,
                top_k=0,
            )
        assert tokens.shape[1] == inputs.shape[1] + length

    return run


def main():
    options = _measuring.arguments(__doc__).parse_args()
    size = QUICK if options.quick else Size()
    rounds = 1 if options.quick else 5
    installed = all(map(importlib.util.find_spec, ("transformers", "torch")))
    llama = build_llama(size) if installed else None
    network, params = build(size) if llama is None else read(llama)
    drawn = np.random.default_rng(0)
    prompt = jnp.asarray(
        drawn.integers(1, size.vocabulary, (size.batch_size, size.prompt), np.int32)
    )
    key = jax.random.key(1)

    def generate(**settings):
        generated = models.generate(
            network, params, prompt, length=size.length, key=key, **settings
        )
        jax.block_until_ready(generated)

    bare = write_out(network, size.length)
    runs = {
        LIBRARY: generate,
        BARE: lambda: jax.block_until_ready(bare(params, prompt, key)),
        **{name: functools.partial(generate, **way) for name, way in WAYS.items()},
    }
    if llama is not None:
        runs[TRANSFORMERS] = sample_llama(llama, prompt, size.length)
    samples = _measuring.interleaved(
        {name: lambda run=run: size.tokens / _measuring.timed(run) for name, run in runs.items()},
        rounds=rounds,
    )
    rates = {name: _measuring.spread(figures) for name, figures in samples.items()}
    ratios = {
        f"{LIBRARY} / {name}": _measuring.ratio(samples[LIBRARY], samples[name])
        for name in LEAST
        if name in samples
    }
    rows = [(name, *_measuring.columns(figures)) for name, figures in rates.items()]
    _measuring.show("tokens per second", ("", "median", "quartiles"), rows)
    rows = [(what, *_measuring.columns(figures)) for what, figures in ratios.items()]
    _measuring.show("ratios", ("", "median", "quartiles"), rows)
    notes = [] if installed else ["transformers and torch are not installed, and took no part"]
    _measuring.finish(
        options,
        "sampling",
        unit="tokens/s",
        warm_up="compilation in the first round, which does not count",
        repeats=rounds,
        size=size._asdict(),
        measured=rates,
        ratios=ratios,
        notes=notes,
        bars=[
            _measuring.bar(
                f"{LIBRARY} / {name}", ratios[f"{LIBRARY} / {name}"]["median"], least=least
            )
            for name, least in LEAST.items()
            if name in samples
        ],
    )


if __name__ == "__main__":
    main()
