"""What families of language models call their settings and tensors on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LINEAR, CONV = "linear", "conv"
"""Kernels as `[out, in]`, and as `[in, out]`."""


@dataclass(frozen=True)
class Family:
    """The names of a family, and what is the same in all of its models.

    `settings` and `architecture` map keys of `config.json` to arguments of `models.transformer`
    and to fields of `models.Architecture`.
    """

    model_type: str
    class_name: str
    """For the key `architectures`."""
    settings: Mapping[str, str]
    architecture: Mapping[str, str | tuple[str, ...]]
    fixed: Mapping[str, Any]
    """Fields of `models.Architecture` that the family always has."""
    defaults: Mapping[str, Any]
    """Values of keys that `config.json` may leave out."""
    tensors: Mapping[str, str]
    """Tensors by the path of the parameter, `{}` for the layer."""
    required: Mapping[str, Any] = field(default_factory=dict)
    """Keys that allow one value only, if any other changes the result."""
    layout: str = LINEAR
    ignored: str = "$^"
    """A regular expression of tensors that are no weights, such as masks."""


SETTINGS = {
    "vocab_size": "vocabulary",
    "max_position_embeddings": "context",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "hidden_size": "width",
    "intermediate_size": "hidden",
    "tie_word_embeddings": "tied",
}
ARCHITECTURE: dict[str, str | tuple[str, ...]] = {
    "num_key_value_heads": "kv_heads",
    "head_dim": "head_size",
    "rms_norm_eps": "norm_epsilon",
    "hidden_act": "activation",
}
DEFAULTS = {
    "tie_word_embeddings": False,
    "num_key_value_heads": None,
    "head_dim": None,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "rope_theta": 10_000.0,
    "rope_scaling": None,
    "rope_parameters": None,
}
GATED = {"gated": True, "norm": "rms", "positions": "rotary", "embedding_scale": 1.0}

LAYER, ATTENTION = "model.layers.{}.", "model.layers.{}.self_attn."
TENSORS = {
    "embed/embedding": "model.embed_tokens.weight",
    "norm/scale": "model.norm.weight",
    "head/kernel": "lm_head.weight",
    "blocks/attention_norm/scale": LAYER + "input_layernorm.weight",
    "blocks/dense_norm/scale": LAYER + "post_attention_layernorm.weight",
    "blocks/attention/query/kernel": ATTENTION + "q_proj.weight",
    "blocks/attention/key/kernel": ATTENTION + "k_proj.weight",
    "blocks/attention/value/kernel": ATTENTION + "v_proj.weight",
    "blocks/attention/out/kernel": ATTENTION + "o_proj.weight",
    "blocks/gate/kernel": LAYER + "mlp.gate_proj.weight",
    "blocks/up/kernel": LAYER + "mlp.up_proj.weight",
    "blocks/down/kernel": LAYER + "mlp.down_proj.weight",
}
ATTENTION_BIAS = {
    f"blocks/attention/{ours}/bias": f"{ATTENTION}{theirs}_proj.bias"
    for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o"))
}
DENSE_BIAS = {
    f"blocks/{name}/bias": f"{LAYER}mlp.{name}_proj.bias" for name in ("gate", "up", "down")
}
QK_NORM = {
    "blocks/attention/query_norm/scale": ATTENTION + "q_norm.weight",
    "blocks/attention/key_norm/scale": ATTENTION + "k_norm.weight",
}
POST_NORMS = {
    "blocks/attention_post_norm/scale": LAYER + "post_attention_layernorm.weight",
    "blocks/dense_norm/scale": LAYER + "pre_feedforward_layernorm.weight",
    "blocks/dense_post_norm/scale": LAYER + "post_feedforward_layernorm.weight",
}
ROTARY_BUFFERS = r"\.rotary_emb\.inv_freq$"
QWEN_WINDOWS = {
    "sliding_window": 4096,
    "use_sliding_window": False,
    "max_window_layers": 28,
    "layer_types": None,
}
GEMMA = {
    **{key: value for key, value in ARCHITECTURE.items() if key != "hidden_act"},
    "hidden_activation": "activation",
    "attention_bias": ("attention_bias", "out_bias"),
    "attn_logit_softcapping": "attention_softcap",
    "final_logit_softcapping": "logit_softcap",
}
GEMMA_DEFAULTS = {
    **{key: value for key, value in DEFAULTS.items() if key != "hidden_act"},
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "attention_bias": False,
    "sliding_window": 4096,
    "layer_types": None,
    "query_pre_attn_scalar": 256,
}

GPT2_LAYER = "transformer.h.{}."
GPT2_TENSORS = {
    "embed/embedding": "transformer.wte.weight",
    "positions/embedding": "transformer.wpe.weight",
    "head/kernel": "lm_head.weight",
    **{
        f"{ours}/{kind}": f"{theirs}.{name}"
        for ours, theirs in (
            ("norm", "transformer.ln_f"),
            ("blocks/attention_norm", GPT2_LAYER + "ln_1"),
            ("blocks/dense_norm", GPT2_LAYER + "ln_2"),
        )
        for kind, name in (("scale", "weight"), ("bias", "bias"))
    },
    **{
        f"blocks/{ours}/{kind}": f"{GPT2_LAYER}{theirs}.{name}"
        for ours, theirs in (
            ("attention/query", "attn.c_attn"),
            ("attention/key", "attn.c_attn"),
            ("attention/value", "attn.c_attn"),
            ("attention/out", "attn.c_proj"),
            ("up", "mlp.c_fc"),
            ("down", "mlp.c_proj"),
        )
        for kind, name in (("kernel", "weight"), ("bias", "bias"))
    },
}
"""Parameters that share a tensor lie side by side along its last axis, in this order."""

FAMILIES = {
    family.model_type: family
    for family in (
        Family(
            "llama",
            "LlamaForCausalLM",
            SETTINGS,
            ARCHITECTURE
            | {"attention_bias": ("attention_bias", "out_bias"), "mlp_bias": "dense_bias"},
            GATED,
            DEFAULTS | {"attention_bias": False, "mlp_bias": False},
            TENSORS | ATTENTION_BIAS | DENSE_BIAS,
            ignored=ROTARY_BUFFERS,
        ),
        Family(
            "mistral",
            "MistralForCausalLM",
            SETTINGS,
            ARCHITECTURE,
            GATED,
            DEFAULTS | {"sliding_window": 4096, "num_key_value_heads": 8},
            TENSORS,
            ignored=ROTARY_BUFFERS,
        ),
        Family(
            "qwen2",
            "Qwen2ForCausalLM",
            SETTINGS,
            ARCHITECTURE,
            GATED | {"attention_bias": True},
            DEFAULTS | QWEN_WINDOWS | {"num_key_value_heads": 32},
            TENSORS | ATTENTION_BIAS,
        ),
        Family(
            "qwen3",
            "Qwen3ForCausalLM",
            SETTINGS,
            ARCHITECTURE | {"attention_bias": ("attention_bias", "out_bias")},
            GATED | {"qk_norm": True},
            DEFAULTS
            | QWEN_WINDOWS
            | {"num_key_value_heads": 32, "head_dim": 128, "attention_bias": False},
            TENSORS | ATTENTION_BIAS | QK_NORM,
        ),
        Family(
            "gemma2",
            "Gemma2ForCausalLM",
            SETTINGS,
            GEMMA,
            GATED | {"norm_offset": True, "post_norms": True, "embedding_scale": None},
            GEMMA_DEFAULTS
            | {"sliding_window_pattern": 2}
            | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
            TENSORS | ATTENTION_BIAS | POST_NORMS,
            {"use_bidirectional_attention": False},
        ),
        Family(
            "gemma3_text",
            "Gemma3ForCausalLM",
            SETTINGS,
            GEMMA,
            GATED
            | {"norm_offset": True, "post_norms": True, "embedding_scale": None, "qk_norm": True},
            GEMMA_DEFAULTS
            | {"sliding_window_pattern": 6, "rope_theta": 1e6, "rope_local_base_freq": 10_000.0}
            | {"attn_logit_softcapping": None, "final_logit_softcapping": None},
            TENSORS | ATTENTION_BIAS | POST_NORMS | QK_NORM,
            {"use_bidirectional_attention": False},
        ),
        Family(
            "gpt2",
            "GPT2LMHeadModel",
            {
                "vocab_size": "vocabulary",
                "n_positions": "context",
                "n_layer": "layers",
                "n_head": "heads",
                "n_embd": "width",
                "n_inner": "hidden",
                "tie_word_embeddings": "tied",
            },
            {"layer_norm_epsilon": "norm_epsilon", "activation_function": "activation"},
            {
                "norm": "layer",
                "positions": "learned",
                "embedding_scale": 1.0,
                "attention_bias": True,
                "out_bias": True,
                "dense_bias": True,
            },
            {
                "n_inner": None,
                "tie_word_embeddings": True,
                "layer_norm_epsilon": 1e-5,
                "activation_function": "gelu_new",
            },
            GPT2_TENSORS,
            {
                "scale_attn_weights": True,
                "scale_attn_by_inverse_layer_idx": False,
                "add_cross_attention": False,
            },
            CONV,
            r"\.attn\.(bias|masked_bias)$",
        ),
    )
}
"""The families by their `model_type`."""
