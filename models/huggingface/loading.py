"""`from_huggingface`: a network and its parameters from a directory of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from models.huggingface.configs import read_config
from models.huggingface.directories import CONFIG, find_tensors, match_tensors, read_json
from models.huggingface.parameters import Parameter, locate_parameters
from models.huggingface.tensor_files import DTYPES, StoredTensor
from models.language.decoding import Decoder
from models.language.transformer import transformer
from models.network import PyTree
from models.sharding import SpecFunction

Rules = Sequence[tuple[str, PartitionSpec | SpecFunction]]


def from_huggingface(
    directory: str | Path,
    *,
    dtype: Any = None,
    mesh: Mesh | None = None,
    rules: Rules = (),
    dropout: float = 0.0,
    remat: bool = False,
    scan: bool = False,
) -> tuple[Decoder, PyTree]:
    """Build the network that a directory of the Hugging Face hub describes; read its parameters.

    The directory has `config.json` and `model.safetensors`, or its index and shards, of Llama 2 or
    3, Mistral, Qwen 2 or 3 (dense), Gemma 2 or 3 (text), or GPT-2. Every tensor is read a piece at
    a time into its dtype and its place, and only the parts for this process's devices: the host
    never holds a second copy of all. Nothing in the directory is executed, and no pickle is read.

    Float32 logits are those of transformers to 1e-4. An embedding that has more rows than the
    tokenizer has tokens stays as it is.

    Args:
        directory: of these files.
        dtype: of the parameters, floating; None for those of the files.
        mesh: of `trainer.mesh`; None for the default device.
        rules: how parameters are split over the mesh, as in `trainer.spread`, such as those of
            `models.transformer_rules`; a parameter that none matches is on every device.
        dropout, remat, scan: as in `models.transformer`.

    Returns:
        The network, and parameters for it.

    Raises:
        FileNotFoundError: a file is missing.
        TypeError: the dtype is not floating.
        ValueError: a file is damaged, values of `config.json` are not understood, or tensors are
            missing, not expected, of another shape, or not floating; the error lists all.

    >>> import tempfile
    >>> import models
    >>> llama = models.Architecture(gated=True, activation="silu", embedding_scale=1.0)
    >>> sizes = dict(vocabulary=5, context=8, layers=1, heads=2, width=8)
    >>> written = models.transformer(**sizes, architecture=llama)
    >>> params, _ = written.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     models.to_huggingface(written, params, directory)
    ...     network, read = models.from_huggingface(directory, dtype=jnp.bfloat16)
    >>> read["embed"]["embedding"].shape, read["embed"]["embedding"].dtype
    ((5, 8), dtype(bfloat16))
    """
    directory = Path(directory)
    if rules and mesh is None:
        raise ValueError("from_huggingface takes rules together with a mesh, which they split")
    _check_dtype(dtype)
    config = read_json(directory / CONFIG)
    try:
        family, settings = read_config(config)
        network = transformer(**vars(settings), dropout=dropout, remat=remat, scan=scan)
    except ValueError as error:
        raise ValueError(f"{directory / CONFIG}: {error}") from None
    tensors = find_tensors(directory)
    if settings.layers > len(tensors):
        raise ValueError(
            f"{directory / CONFIG} has {settings.layers:,} layers, and the files beside it have "
            f"{len(tensors):,} tensors"
        )
    example = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    shapes, _ = jax.eval_shape(network.init, jax.random.key(0), example)
    parameters, expected = locate_parameters(shapes, family)
    tensors = match_tensors(directory, expected, tensors, family)

    def place(path: Any, _: Any) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        placed = _place(name, parameters[name], tensors, dtype, mesh, rules)
        return placed.block_until_ready()  # before the next one needs memory on the host

    return network, jax.tree_util.tree_map_with_path(place, shapes)


def _check_dtype(dtype: Any) -> None:
    if dtype is not None and jnp.dtype(dtype) not in DTYPES.values():
        known = ", ".join(str(each) for each in DTYPES.values())
        raise TypeError(f"from_huggingface: dtype must be one of {known}; got {dtype!r}")


def _place(
    path: str,
    parameter: Parameter,
    tensors: Mapping[str, StoredTensor],
    dtype: Any,
    mesh: Mesh | None,
    rules: Rules,
) -> jax.Array:
    """Read a parameter to its devices."""
    stored = DTYPES[tensors[parameter.slots[0].tensor].dtype] if dtype is None else dtype
    kind = jax.dtypes.canonicalize_dtype(stored)
    if mesh is None:  # without a device, so that it may follow other arrays to theirs
        return jax.device_put(parameter.read(tensors, kind, [slice(None)] * len(parameter.shape)))
    spec = PartitionSpec()
    for pattern, way in rules:
        if re.search(pattern, f"params/{path}"):
            spec = way if isinstance(way, PartitionSpec) else way(parameter.shape, mesh)
            break

    def read(index: Any) -> np.ndarray:
        return parameter.read(tensors, kind, index)

    return jax.make_array_from_callback(parameter.shape, NamedSharding(mesh, spec), read)
