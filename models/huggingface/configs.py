"""Settings of a network from `config.json`, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from models.huggingface.families import FAMILIES, Family
from models.huggingface.layer_settings import (
    read_rotary,
    read_windows,
    write_rotary,
    write_windows,
)
from models.huggingface.value_checks import check_flag, check_number, check_size
from models.language.architecture import Architecture
from models.language.text_settings import TextSettings

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}

WRITTEN_ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}

HARMLESS = {
    *("architectures", "model_type", "transformers_version", "torch_dtype", "dtype"),
    *("name_or_path", "task_specific_params", "attn_implementation"),
    *("id2label", "label2id", "num_labels", "problem_type", "finetuning_task"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id"),
    *("use_cache", "cache_implementation", "return_dict", "output_hidden_states", "pretraining_tp"),
    *("output_attentions", "torchscript", "use_bfloat16", "tie_encoder_decoder", "is_decoder"),
    *("initializer_range", "attention_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop"),
    *("chunk_size_feed_forward", "reorder_and_upcast_attn", "n_ctx", "gradient_checkpointing"),
    *("summary_type", "summary_use_proj", "summary_activation", "summary_first_dropout"),
    *("summary_proj_to_labels", "hidden_act", "unsloth_version", "unsloth_fixed"),
    *("is_llama_config", "transformers.js_config"),
}
"""Keys that do not change what a network computes, or only how it is trained."""

MOST_LAYERS = 10_000
"""No network has as many."""


def read_config(config: Mapping[str, Any]) -> tuple[Family, TextSettings]:
    """Return the family and the settings that a `config.json` describes.

    Raises:
        ValueError: the family is unknown, or values are missing, or not understood; all are listed.
    """
    name = config.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise ValueError(f"model_type must be one of {', '.join(FAMILIES)}; got {name!r:.100}")
    family = FAMILIES[name]
    values = {**family.defaults, **config}
    faults = _find_unknown(config, family)
    sizes: dict[str, Any] = {ours: values.get(key) for key, ours in family.settings.items()}
    for key, ours in family.settings.items():
        if ours == "tied":
            check_flag(key, sizes[ours], faults)
        elif key != "n_inner" or sizes[ours] is not None:
            check_size(key, sizes[ours], faults)
    if not faults and sizes["layers"] > MOST_LAYERS:
        faults.append(f"{sizes['layers']:,} layers are more than {MOST_LAYERS:,}")
    architecture = dict(family.fixed)
    for key, fields in family.architecture.items():
        for ours in (fields,) if isinstance(fields, str) else fields:
            architecture[ours] = _read_value(key, ours, values.get(key), faults)
    if "query_pre_attn_scalar" in values:
        check_number("query_pre_attn_scalar", values["query_pre_attn_scalar"], faults)
    if "rope_theta" in family.defaults:
        architecture |= read_rotary(values, faults)
    if "sliding_window" in family.defaults and not faults:
        architecture |= read_windows(values, sizes["layers"], faults)
    if faults:
        raise ValueError("; ".join(faults))
    if "query_pre_attn_scalar" in family.defaults:
        architecture["query_scale"] = values["query_pre_attn_scalar"] ** -0.5
    if architecture.get("window") is None:
        architecture["local_rotary_base"] = None
    if sizes["hidden"] is None:
        sizes["hidden"] = 4 * sizes["width"]
    return family, TextSettings(**sizes, architecture=Architecture(**architecture))


def _find_unknown(config: Mapping[str, Any], family: Family) -> list[str]:
    """Return a fault for each value that may change the result and is not understood."""
    required = {"partial_rotary_factor": 1.0, **family.required}
    faults = [
        f"{key} must be {needed!r}; got {config[key]!r:.100}"
        for key, needed in required.items()
        if config.get(key) is not None and config[key] != needed
    ]
    known = {*family.settings, *family.architecture, *family.defaults, *required, *HARMLESS}
    return faults + [
        f"{key:.100} is not understood; got {value!r:.100}"
        for key, value in config.items()
        if key not in known and not key.startswith("_") and value not in (None, False)
    ]


def _read_value(key: str, field: str, value: Any, faults: list[str]) -> Any:
    """Return the value of a field of the architecture."""
    if field == "activation":
        if isinstance(value, str) and value in ACTIVATIONS:
            return ACTIVATIONS[value]
        faults.append(f"{key} must be one of {', '.join(ACTIVATIONS)}; got {value!r:.100}")
    elif field.endswith("_bias"):
        check_flag(key, value, faults)
    elif value is not None:
        check = check_size if field in ("kv_heads", "head_size") else check_number
        check(key, value, faults)
    elif field == "norm_epsilon":
        faults.append(f"{key} is missing")
    return value


def choose_config(settings: TextSettings, name: str | None) -> tuple[Family, dict[str, Any]]:
    """Return a family that has such networks, and the `config.json` of one with these settings.

    Args:
        settings: of the network.
        name: of the family, or None for the first that has such networks.

    Raises:
        ValueError: there is no such family, or its networks differ; the differences are listed.
    """
    if name is not None and (not isinstance(name, str) or name not in FAMILIES):
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}; got {name!r:.100}")
    faults = []
    for family in FAMILIES.values() if name is None else [FAMILIES[name]]:
        config = _write_config(family, settings)
        try:
            differences = _compare(settings, read_config(config)[1])
        except ValueError as error:
            differences = [str(error)]
        if not differences:
            return family, config
        faults.append(f"{family.model_type}: {', '.join(differences)}")
    who = "no family has" if name is None else "the family has no"
    raise ValueError(f"{who} such networks:\n  " + "\n  ".join(faults))


def _write_config(family: Family, settings: TextSettings) -> dict[str, Any]:
    architecture, defaults = settings.architecture, family.defaults
    config: dict[str, Any] = {"model_type": family.model_type, "architectures": [family.class_name]}
    config |= {key: getattr(settings, ours) for key, ours in family.settings.items()}
    for key, fields in family.architecture.items():
        value = getattr(architecture, fields if isinstance(fields, str) else fields[0])
        config[key] = WRITTEN_ACTIVATIONS[value] if fields == "activation" else value
    if "query_pre_attn_scalar" in defaults and architecture.query_scale is not None:
        scalar = architecture.query_scale**-2
        near = round(scalar)  # a whole number in every model, to rounding here
        config["query_pre_attn_scalar"] = near if math.isclose(scalar, near) else scalar
    if "rope_theta" in defaults:
        config |= write_rotary(architecture, defaults)
    if "sliding_window" in defaults:
        config |= write_windows(architecture, settings.layers, defaults)
    return config


def _compare(settings: TextSettings, read: TextSettings) -> list[str]:
    """Return the fields in which settings differ from those that a family can have."""
    pairs = {
        **{name: (value, getattr(read, name)) for name, value in vars(settings).items()},
        **{
            name: (value, getattr(read.architecture, name))
            for name, value in vars(settings.architecture).items()
        },
    }
    del pairs["architecture"]
    return [
        f"{name} is {ours!r}, not {theirs!r}"
        for name, (ours, theirs) in pairs.items()
        if ours != theirs
        and not (
            isinstance(ours, float) and isinstance(theirs, float) and math.isclose(ours, theirs)
        )
    ]
