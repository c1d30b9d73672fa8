"""`to_peft` and `from_peft`: adapters as a directory that PEFT reads and writes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from models.fine_tuning.lora import BASE, lora
from models.fine_tuning.pretrained import pretrained
from models.huggingface.adapter_modules import (
    AdapterModule,
    Factors,
    ModulePart,
    build_adapters,
    list_modules,
    name_targets,
    split_module,
)
from models.huggingface.adapter_settings import CONFIG, check_settings, find_scale
from models.huggingface.configs import choose_config
from models.huggingface.directories import read_json, write_json
from models.huggingface.families import CONV
from models.huggingface.tensor_files import DTYPES, StoredTensor, read_header, write_tensors
from models.language.decoding import Decoder
from models.network import PyTree

WEIGHTS = "adapter_model.safetensors"

NAME = "base_model.model.{}.lora_{}.weight"
"""Of the tensor of a module's factor, A or B."""


def to_peft(
    network: Decoder,
    params: PyTree,
    directory: str | Path,
    *,
    base: str | None = None,
    family: str | None = None,
) -> None:
    """Write adapters as a directory that PEFT and `from_peft` load.

    It has `adapter_model.safetensors`, in float32, and `adapter_config.json`, which is written
    last. Where the family keeps query, key and value in one module, as GPT-2 does, their adapters
    become one of up to three times the rank, which computes the same.

    Args:
        network: of `models.lora`.
        params: its adapters, such as `state.params`.
        directory: to write to, created if it does not exist; it must hold no adapters.
        base: name or directory of the network without adapters, which PEFT loads beside them.
        family: as of `to_huggingface`.

    Raises:
        FileExistsError: the directory holds adapters.
        TypeError: the network has no adapters, or is none of `transformer`.
        ValueError: no family has such networks.

    >>> import tempfile
    >>> import models
    >>> llama = models.Architecture(gated=True, activation="silu", embedding_scale=1.0)
    >>> sizes = dict(vocabulary=5, context=8, layers=1, heads=2, width=8)
    >>> network = models.transformer(**sizes, architecture=llama)
    >>> tokens = jnp.zeros((1, 1), jnp.int32)
    >>> whole, _ = network.init(jax.random.key(0), tokens)
    >>> adapted = lora(network, whole, rank=2, targets=["query"])
    >>> adapters, _ = adapted.init(jax.random.key(1), tokens)
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     models.to_peft(adapted, adapters, directory)
    ...     again, read = models.from_peft(directory, network, whole)
    >>> again.lora == adapted.lora, jax.tree.structure(read) == jax.tree.structure(adapters)
    (True, True)
    """
    config = getattr(network, "lora", None)
    if config is None or network.settings is None:
        raise TypeError(
            "to_peft takes a network that models.lora made of one of models.transformer or "
            f"from_huggingface; got {network!r:.100}"
        )
    chosen, _ = choose_config(network.settings, family)
    directory = Path(directory)
    if held := [name for name in (CONFIG, WEIGHTS) if (directory / name).exists()]:
        raise FileExistsError(
            f"{directory} holds {', '.join(held)}; pass another directory, or remove them"
        )
    example = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), example)[1][BASE]
    modules = list_modules(shapes, chosen)
    tensors: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}
    for module in modules:
        if (factors := module.join(params)) is None:
            continue
        for letter, factor in zip("AB", factors, strict=True):
            tensors[NAME.format(module.name, letter)] = factor.T
        ranks[module.name] = factors[0].shape[1]
    wider = {name: rank for name, rank in ranks.items() if rank != config.rank}
    directory.mkdir(parents=True, exist_ok=True)
    kinds = {name: (np.dtype(np.float32), tensor.shape) for name, tensor in tensors.items()}
    beside = directory / f"{WEIGHTS}.tmp"
    try:
        beside.unlink(missing_ok=True)
        write_tensors(beside, kinds, tensors.__getitem__)
        os.replace(beside, directory / WEIGHTS)
    finally:
        beside.unlink(missing_ok=True)
    written = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": chosen.layout == CONV,
        "inference_mode": True,
        "rank_pattern": wider,
        "alpha_pattern": {name: config.scale * rank for name, rank in wider.items()},
        "target_modules": name_targets(ranks, [module.name for module in modules]),
    }
    write_json(directory / CONFIG, written)


def from_peft(
    directory: str | Path, network: Decoder, params: PyTree, *, family: str | None = None
) -> tuple[Decoder, PyTree]:
    """Read adapters that PEFT or `to_peft` wrote; return the network with them.

    Ranks that differ are filled up with zeros, and scales that differ are multiplied into the
    second factor, which computes the same.

    Args:
        directory: with `adapter_config.json` and `adapter_model.safetensors`.
        network: without adapters, of `transformer` or `from_huggingface`.
        params: its parameters, which are not copied.
        family: as of `to_huggingface`, whose names the tensors have.

    Returns:
        A decoder as of `models.lora`, and its adapters, which its `init` returns too.

    Raises:
        FileNotFoundError: a file is missing.
        TypeError: the network is none of `transformer`.
        ValueError: a file is damaged, the adapters are of another kind, or tensors are missing, not
            expected or of another shape; all are listed.
    """
    directory = Path(directory)
    if getattr(network, "settings", None) is None:
        raise TypeError(
            "from_peft takes a network of models.transformer or from_huggingface; got "
            f"{network!r:.100}"
        )
    assert network.settings is not None
    chosen, _ = choose_config(network.settings, family)
    config = read_json(directory / CONFIG)
    check_settings(directory / CONFIG, config)
    stored = read_header(directory / WEIGHTS)
    modules = list_modules(params, chosen)
    found = _match(directory / WEIGHTS, stored, modules)
    scales = {m.name: find_scale(config, m.name, a.shape[0]) for m, (a, _) in found.items()}
    scale = next(iter(scales.values()))
    rank = max(a.shape[0] for a, _ in found.values())
    factors: dict[ModulePart, Factors] = {}
    for module, (first, second) in found.items():
        a, b = _read(first).T, _read(second).T
        if scales[module.name] != scale:
            b = b * np.float32(scales[module.name] / scale)
        missing = rank - a.shape[1]
        factors |= split_module(
            module, np.pad(a, ((0, 0), (0, missing))), np.pad(b, ((0, missing), (0, 0)))
        )
    layers, adapters = build_adapters(factors, modules)
    targets = [re.escape(layer) for layer in layers]
    adapted = lora(network, params, rank=rank, alpha=scale * rank, targets=targets)
    return pretrained(adapted, adapters, {BASE: params}), adapters


def _match(
    file: Path, stored: Mapping[str, StoredTensor], modules: Iterable[AdapterModule]
) -> dict[AdapterModule, tuple[StoredTensor, StoredTensor]]:
    """Return the tensors of the modules that have adapters."""
    found, faults = {}, []
    left = set(stored)
    for module in modules:
        names = [NAME.format(module.name, letter) for letter in "AB"]
        here = [name for name in names if name in stored]
        left -= set(here)
        if len(here) == 1:
            faults.append(f"{here[0]} is alone")
        elif here:
            a, b = (stored[name] for name in names)
            rank = a.shape[0] if a.shape else 0
            floats = {a.dtype, b.dtype} <= DTYPES.keys()
            if not floats or (a.shape, b.shape) != ((rank, module.inputs), (module.outputs, rank)):
                faults.append(
                    f"{names[0]} {a.dtype}{list(a.shape)} and B {b.dtype}{list(b.shape)} are no "
                    f"floats [rank, {module.inputs}] and [{module.outputs}, rank]"
                )
            found[module] = (a, b)
    faults += [f"{name:.200} is not expected" for name in sorted(left)[:8]]
    if faults or not found:
        raise ValueError(
            f"{file} does not fit the network: " + ("; ".join(faults) or "it holds no adapter")
        )
    return found


def _read(tensor: StoredTensor) -> np.ndarray:
    out = np.empty(tensor.shape, np.float32)
    tensor.read_into(out, slice(None), slice(None), transposed=False)
    return out
