"""The file of PEFT that describes adapters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONFIG = "adapter_config.json"

PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),
}
"""Settings with values that mean adapters as those of `models.lora`."""

HARMLESS = {
    *("auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "exclude_modules"),
    *("fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform", "lora_alpha"),
    *("lora_dropout", "megatron_config", "megatron_core", "peft_version", "qalora_group_size"),
    *("revision", "target_modules", "task_type", "rank_pattern", "r", "alpha_pattern"),
    *("use_rslora", "eva_config"),
}
"""Settings that change nothing, or that are read."""


def check_settings(file: Path, config: Mapping[str, Any]) -> None:
    """Check that adapters are plain ones.

    Raises:
        ValueError: a setting means others, or is not understood; all are listed.
    """
    faults = [
        f"{key} must be one of {', '.join(map(repr, values))}; got {config.get(key)!r:.100}"
        for key, values in PLAIN.items()
        if config.get(key, values[0]) not in values
    ]
    if "peft_type" not in config:
        faults.append("peft_type is missing")
    faults += [
        f"{key:.100} is not understood; got {value!r:.100}"
        for key, value in config.items()
        if key not in {*PLAIN, *HARMLESS} and value not in (None, False, [], {})
    ]
    alphas = config.get("alpha_pattern") or {}
    if not isinstance(alphas, dict):
        faults.append(f"alpha_pattern must be an object; got {alphas!r:.100}")
        alphas = {}
    for key, value in {"lora_alpha": config.get("lora_alpha"), **alphas}.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value < math.inf:
            faults.append(f"{key:.100} must be a number above 0; got {value!r:.100}")
    if faults:
        raise ValueError(f"{file}: " + "; ".join(faults))


def find_scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """Return what the product of a module's factors is multiplied by.

    >>> find_scale({"lora_alpha": 4, "alpha_pattern": {"q_proj": 6}}, "layers.0.q_proj", 2)
    3.0
    """
    patterns = config.get("alpha_pattern") or {}
    alpha = next(
        (value for key, value in patterns.items() if f".{module}".endswith(f".{key}")),
        config["lora_alpha"],
    )
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
