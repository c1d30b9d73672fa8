"""A directory of weights as it lies on the Hugging Face hub, for pages that read one."""

import json

import jax
import jax.numpy as jnp
import numpy as np

TEMPLATE = """{% for m in messages %}{{ "<|im_start|>" + m.role + "\\n" + m.content + "<|im_end|>\\n" }}{% endfor %}
{%- if add_generation_prompt %}{{ "<|im_start|>assistant\\n" }}{% endif %}"""  # noqa: E501


def write_weights(directory):
    """Write a tiny Llama with drawn weights, a tokenizer of bytes, and a chat template."""
    import tokenizers
    from tokenizers import decoders, pre_tokenizers
    from tokenizers import models as token_models

    import models

    network = models.transformer(
        vocabulary=258,
        context=128,
        layers=1,
        heads=4,
        width=32,
        hidden=48,
        architecture=models.Architecture(
            gated=True, activation="silu", kv_heads=2, embedding_scale=1.0
        ),
    )
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    shapes, _ = jax.eval_shape(network.init, jax.random.key(0), tokens)
    random = np.random.default_rng(0)

    def draw(leaf):
        drawn = random.normal(size=leaf.shape) / 8 if leaf.ndim > 1 else np.ones(leaf.shape)
        return drawn.astype(np.float32)

    directory.parent.mkdir(exist_ok=True)
    models.to_huggingface(network, jax.tree.map(draw, shapes), directory)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    tokenizer = tokenizers.Tokenizer(token_models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    (directory / "chat_template.jinja").write_text(TEMPLATE)
