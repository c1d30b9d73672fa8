"""`to_huggingface`: a network's parameters as a directory that transformers loads."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.argument_checks import require_fit
from models.huggingface.configs import HARMLESS, choose_config
from models.huggingface.directories import CONFIG, INDEX, WEIGHTS, read_json, write_json
from models.huggingface.parameters import list_parts, locate_parameters
from models.huggingface.tensor_files import write_tensors
from models.language.decoding import Decoder
from models.network import PyTree

COMPANIONS = (
    *("generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
    *("chat_template.jinja", "chat_template.json"),
)
"""Files of a tokenizer, its template, and how to generate."""


def to_huggingface(
    network: Decoder,
    params: PyTree,
    directory: str | Path,
    *,
    like: str | Path | None = None,
    family: str | None = None,
) -> None:
    """Write a network's parameters as a directory that transformers and `from_huggingface` load.

    It has `config.json` and `model.safetensors`, which holds the bits of the parameters in their
    dtype. `config.json` is written last: a directory that has it is complete.

    Args:
        network: of `models.transformer` or `models.from_huggingface`.
        params: its parameters, with the blocks of a loop or of a scan.
        directory: to write to, created if it does not exist; it must hold no weights.
        like: a directory of the same family, whose tokenizer, template, and token ids are copied.
        family: the `model_type`, such as `llama`; None for that of `like`, or the first of llama,
            mistral, qwen2, qwen3, gemma2, gemma3_text and gpt2 that has such networks.

    Raises:
        FileExistsError: the directory holds weights.
        TypeError: the network is of another kind, or has adapters, which `models.merge_lora`
            merges; or the parameters' dtype is not floating.
        ValueError: no family, or not this one, has such networks; the parameters do not fit the
            network; or parts of them are on other processes.

    >>> import tempfile
    >>> import models
    >>> llama = models.Architecture(gated=True, activation="silu", embedding_scale=1.0)
    >>> sizes = dict(vocabulary=5, context=8, layers=1, heads=2, width=8)
    >>> network = models.transformer(**sizes, architecture=llama)
    >>> params, _ = network.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     models.to_huggingface(network, params, directory)
    ...     sorted(path.name for path in Path(directory).iterdir())
    ['config.json', 'model.safetensors']
    """
    directory = Path(directory)
    kept: Mapping[str, Any] = {}
    if like is not None:
        kept = read_json(Path(like) / CONFIG)
        family = kept.get("model_type") if family is None else family
    settings = getattr(network, "settings", None)
    if settings is None:
        raise TypeError(
            "to_huggingface takes a network of models.transformer or models.from_huggingface; got "
            f"{type(network).__name__}"
        )
    if network.lora is not None:
        raise TypeError(
            "to_huggingface takes a network without adapters, and merged parameters: "
            "models.merge_lora(network, params, model_state)"
        )
    chosen, config = choose_config(settings, family)
    example = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    shapes, _ = jax.eval_shape(network.init, jax.random.key(0), example)
    require_fit("params", shapes, params, remedy="pass the network that they belong to")
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    away = [
        path
        for path, leaf in leaves.items()
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    ]
    if away:
        raise ValueError(
            f"to_huggingface needs whole parameters; parts of {away[0]} are on other processes: "
            "pass trainer.gather(params), and write on one process"
        )
    parameters, sizes = locate_parameters(params, chosen)
    held = [name for name in (CONFIG, WEIGHTS, INDEX) if (directory / name).exists()]
    if held:
        raise FileExistsError(
            f"{directory} holds {', '.join(held)}; pass another directory, or remove them"
        )
    directory.mkdir(parents=True, exist_ok=True)
    parts = list_parts(parameters)
    kinds = {name: (leaves[parts[name][0][0]].dtype, size) for name, size in sizes.items()}

    def make(name: str) -> np.ndarray:
        turned = parameters[parts[name][0][0]].slots[0].transposed
        arrays = [
            np.asarray(leaves[path] if layer is None else leaves[path][layer])
            for path, layer in parts[name]
        ]
        whole = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=-1)
        return whole.T if turned else whole

    beside = directory / f"{WEIGHTS}.tmp"
    try:
        beside.unlink(missing_ok=True)
        write_tensors(beside, kinds, make)
        os.replace(beside, directory / WEIGHTS)
    finally:
        beside.unlink(missing_ok=True)
    for name in COMPANIONS:
        if like is not None and (Path(like) / name).exists():
            shutil.copyfile(Path(like) / name, directory / name)
    config = {key: value for key, value in kept.items() if key in HARMLESS} | config
    config |= {"torch_dtype": str(leaves["embed/embedding"].dtype)}
    config.pop("dtype", None)  # the name of the same in version 5
    write_json(directory / CONFIG, config)
