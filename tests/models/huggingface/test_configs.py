"""`config.json` to settings, and what is refused."""

import json
from pathlib import Path

import pytest

from models.huggingface.configs import read_config

FIXTURES = Path(__file__).parent / "fixtures"
CONFIGS = {
    folder.name: json.loads((folder / "config.json").read_text()) for folder in FIXTURES.iterdir()
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def architecture(name, *without, **changes):
    config = {key: value for key, value in CONFIGS[name].items() if key not in without}
    return read_config(config | changes)[1].architecture


def test_both_forms_of_rotary_positions_are_read():
    old = architecture("llama2", "rope_parameters", rope_theta=5e5, rope_scaling=LLAMA3)
    new = architecture("llama2", rope_parameters={"rope_theta": 5e5, **LLAMA3})
    assert old == new
    assert (old.rotary_base, old.local_rotary_base) == (5e5, None)
    kinds = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    }
    keys = ("rope_theta", "rope_scaling", "rope_local_base_freq", "sliding_window_pattern")
    new = architecture("gemma3", *keys, rope_parameters=kinds)
    assert new == architecture("gemma3")
    assert (new.rotary_base, new.local_rotary_base) == (1e6, 100.0)


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("llama2", {}, None),
        ("mistral", {}, (6, None)),
        ("mistral", {"sliding_window": None}, (None, None)),
        ("qwen2", {"sliding_window": 6}, (None, None)),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 6}, (None, None)),
        ("gemma2", {}, (6, 2)),
        ("gemma3", {}, (5, 6)),
        ("gemma3", {"sliding_window_pattern": 3}, (5, 3)),
        ("gemma3", {"sliding_window_pattern": 9}, (5, None)),
        ("gemma3", {"layer_types": ["full_attention"] * 6}, (None, None)),
    ],
)
def test_layers_with_a_window_are_read(name, changes, expected):
    fields = architecture(name, **changes)
    assert (fields.window, fields.global_every) == (expected or (None, None))


def test_a_qwen_has_windows_from_a_layer_on_only_if_from_the_first():
    changes = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 0}
    fields = architecture("qwen2", "layer_types", **changes)
    assert (fields.window, fields.global_every) == (6, None)
    with pytest.raises(ValueError, match="layers without a window must be every n-th"):
        architecture("qwen2", "layer_types", **changes | {"max_window_layers": 1})


REFUSED = {
    "model_type": ("mixtral", "model_type must be one of llama, mistral, qwen2"),
    "hidden_act": ("relu2", "hidden_act must be one of silu"),
    "hidden_size": (0.5, "hidden_size must be a whole number"),
    "num_hidden_layers": (1 << 30, "layers are more than"),
    "num_key_value_heads": ("2", "num_key_value_heads must be a whole number"),
    "rms_norm_eps": (None, "rms_norm_eps is missing"),
    "vocab_size": (None, "vocab_size must be a whole number"),
    "attention_bias": (1, "attention_bias must be true or false"),
    "tie_word_embeddings": ("no", "tie_word_embeddings must be true or false"),
    "rope_scaling": ({"type": "yarn", "factor": 2.0}, "rope_type must be one of default"),
    "rope_parameters": ([1], "must be objects"),
    "rope_theta": (-1.0, "rope_theta must be a number above 0"),
    "partial_rotary_factor": (0.5, "partial_rotary_factor must be 1.0"),
    "quantization_config": ({"bits": 4}, "quantization_config is not understood"),
    "sliding_window": (64, "sliding_window is not understood"),
    "auto_map": ({"AutoModel": "code.Model"}, "auto_map is not understood"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_values_that_change_the_result_and_are_not_understood_are_refused(key):
    value, message = REFUSED[key]
    with pytest.raises(ValueError, match=message):
        architecture("llama2", "rope_parameters", **{key: value})


def test_one_error_lists_all_that_is_wrong():
    with pytest.raises(
        ValueError, match=r"flag is not understood.*hidden_act must.*rope_type must"
    ):
        architecture(
            "llama2",
            "rope_parameters",
            flag=True,
            hidden_act="relu",
            rope_scaling={"rope_type": "dynamic"},
        )


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("gemma3", "use_bidirectional_attention", True),
        ("gpt2", "scale_attn_by_inverse_layer_idx", True),
        ("gpt2", "scale_attn_weights", False),
        ("gemma2", "query_pre_attn_scalar", 0),
        ("gemma2", "layer_types", [["full_attention"]] * 4),
        ("gemma2", "layer_types", ["chunked_attention"] * 4),
        ("gemma3", "rope_scaling", {"rope_type": ["linear"]}),
    ],
)
def test_other_families_refuse_theirs(name, key, value):
    with pytest.raises(ValueError, match="rope_type" if "rope" in key else key):
        architecture(name, **{key: value})
