"""Rotary positions and windows of a `config.json`: in the form of each version, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.huggingface.value_checks import check_number, check_size
from models.language.architecture import Architecture
from models.language.rotary import LinearScaling, Llama3Scaling

FULL, SLIDING = "full_attention", "sliding_attention"

SCALINGS: dict[str, tuple[Any, dict[str, str]]] = {
    "default": (None, {}),
    "linear": (LinearScaling, {"factor": "factor"}),
    "llama3": (
        Llama3Scaling,
        {
            "factor": "factor",
            "low_freq_factor": "low_frequency_factor",
            "high_freq_factor": "high_frequency_factor",
            "original_max_position_embeddings": "original_context",
        },
    ),
}
"""The class of each kind of rotary positions, and what its fields are called."""


def read_rotary(values: Mapping[str, Any], faults: list[str]) -> dict[str, Any]:
    """Return base, scaling and local base of rotary positions; add to the list what is wrong.

    Version 4 of transformers writes `rope_theta`, `rope_scaling` and `rope_local_base_freq`,
    version 5 `rope_parameters`, for each kind of layer where they differ.

    >>> faults = []
    >>> read_rotary({"rope_theta": 1e6, "rope_scaling": {"type": "yarn", "factor": 4.0}}, faults)
    {'rotary_base': 1000000.0, 'rotary_scaling': None, 'local_rotary_base': None}
    >>> faults
    ["rope_type must be one of default, linear, llama3; got 'yarn'"]
    """
    own = [values.get(key) or {} for key in ("rope_scaling", "rope_parameters")]
    if not all(isinstance(part, Mapping) for part in own):
        faults.append(f"rope_scaling and rope_parameters must be objects; got {own!r:.200}")
        own = [{}, {}]
    whole = {"rope_theta": values.get("rope_theta"), **own[0], **own[1]}
    local: Any = {"rope_theta": values.get("rope_local_base_freq")}
    if FULL in whole or SLIDING in whole:
        kinds = [whole.get(kind) or {} for kind in (FULL, SLIDING)]
        if not all(isinstance(kind, Mapping) for kind in kinds):
            faults.append(f"rope_parameters must be objects; got {kinds!r:.200}")
            kinds = [{}, {}]
        whole, local = ({"rope_theta": whole["rope_theta"], **kinds[0]}, {**local, **kinds[1]})
    base, scaling = _read_kind(whole, faults)
    local_base, local_scaling = _read_kind(local, faults)
    if base is None:
        faults.append("rope_theta is missing")
    if local_scaling is not None:
        faults.append("only layers without a window may scale their rotary positions")
    return {
        "rotary_base": base,
        "rotary_scaling": scaling,
        "local_rotary_base": None if local_base == base and scaling is None else local_base,
    }


def _read_kind(found: Mapping[str, Any], faults: list[str]) -> tuple[Any, Any]:
    """Return base and scaling of one kind of layers."""
    kind = found.get("rope_type", found.get("type", "default"))
    if not isinstance(kind, str) or kind not in SCALINGS:
        faults.append(f"rope_type must be one of {', '.join(SCALINGS)}; got {kind!r:.100}")
        return found.get("rope_theta"), None
    factor = found.get("partial_rotary_factor")
    if factor not in (None, 1.0):
        faults.append(f"partial_rotary_factor must be 1.0; got {factor!r:.100}")
    make, names = SCALINGS[kind]
    others = found.keys() - {"rope_type", "type", "rope_theta", "partial_rotary_factor", *names}
    if unknown := sorted(key for key in others if found[key] is not None):
        faults.append(f"{', '.join(unknown)} of {kind} rotary positions are not understood")
    before = len(faults)
    for name in names:
        check_number(name, found.get(name), faults)
    if (base := found.get("rope_theta")) is not None:
        check_number("rope_theta", base, faults)
    if make is None or len(faults) > before:
        return base, None
    try:
        return base, make(**{ours: found[theirs] for theirs, ours in names.items()})
    except ValueError as error:
        faults.append(str(error))
        return base, None


def write_rotary(architecture: Architecture, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of rotary positions, in the form that every version reads.

    `defaults` are the keys of the family.
    """
    base, local = architecture.rotary_base, architecture.local_rotary_base
    written: dict[str, Any] = {"rope_theta": base}
    if "rope_local_base_freq" in defaults:
        written["rope_local_base_freq"] = base if local is None else local
    for kind, (scaling, names) in SCALINGS.items():
        if scaling is not None and isinstance(found := architecture.rotary_scaling, scaling):
            numbers = {theirs: getattr(found, ours) for theirs, ours in names.items()}
            written["rope_scaling"] = {"rope_type": kind, **numbers}
    return written


def read_windows(values: Mapping[str, Any], layers: int, faults: list[str]) -> dict[str, Any]:
    """Return the window and which layers have none; add to the list what is wrong.

    Layers with a window come in runs of one length, each followed by a layer without, or all layers
    have one, or none has.

    >>> read_windows({"sliding_window": 8, "sliding_window_pattern": 3}, 7, [])
    {'window': 8, 'global_every': 3}
    >>> faults = []
    >>> _ = read_windows({"sliding_window": 8, "layer_types": [FULL, SLIDING, SLIDING]}, 3, faults)
    >>> faults
    ['layers without a window must be every n-th; they are number 1 of 3']
    """
    window = values.get("sliding_window")
    if window is None or values.get("use_sliding_window") is False:
        return {"window": None, "global_every": None}
    every = values.get("sliding_window_pattern", layers + 1)
    first = values.get("max_window_layers", 0)
    check_size("sliding_window", window, faults)
    check_size("sliding_window_pattern", every, faults)
    if first != 0:
        check_size("max_window_layers", first, faults)
    if faults:
        return {}
    kinds = values.get("layer_types")
    if kinds is None:
        kinds = [SLIDING if n % every and n > first else FULL for n in range(1, layers + 1)]
    is_list = isinstance(kinds, list) and len(kinds) == layers
    if not is_list or any(kind not in (FULL, SLIDING) for kind in kinds):
        faults.append(f"layer_types must be {layers} of {FULL}, {SLIDING}; got {kinds!r:.200}")
        return {}
    full = [number for number, kind in enumerate(kinds, start=1) if kind == FULL]
    if len(full) == layers:
        return {"window": None, "global_every": None}
    every = full[0] if full else None
    if full and full != list(range(full[0], layers + 1, full[0])):
        numbers = ", ".join(map(str, full))
        faults.append(
            f"layers without a window must be every n-th; they are number {numbers} of {layers}"
        )
    return {"window": window, "global_every": every}


def write_windows(
    architecture: Architecture, layers: int, defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the keys of windows; `defaults` are the keys of the family."""
    written: dict[str, Any] = {"sliding_window": architecture.window}
    windows = [architecture.has_window(layer) for layer in range(layers)]
    if "use_sliding_window" in defaults:
        written |= {"use_sliding_window": any(windows), "max_window_layers": 0}
    if "layer_types" in defaults:
        written["layer_types"] = [SLIDING if window else FULL for window in windows]
    return written
