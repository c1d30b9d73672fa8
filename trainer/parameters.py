"""Parameters from elsewhere and to elsewhere: another run's, by path, and safetensors files."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from trainer.checkpoints.reading import read_params
from trainer.checkpoints.snapshots import on_device
from trainer.durability import replacing
from trainer.escaping import shown
from trainer.names import nearest
from trainer.paths import local
from trainer.processes import is_lead
from trainer.state import PyTree, path_name
from trainer.structure import described

log = logging.getLogger("entracte")

DTYPES = (
    *("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
    *("float16", "bfloat16", "float32", "float64", "complex64"),
)
"""What safetensors files hold that numpy reads back."""

_ITSELF = "params"
"""What parameters that are one array are called in messages: their path is empty."""


def load_params(
    source: str | os.PathLike[str],
    params: PyTree,
    *,
    only: str | None = None,
    rename: Mapping[str, str] | None = None,
    best: str | None = None,
    mode: str | None = None,
) -> PyTree:
    """Take parameters by path from another run or a safetensors file, all of them or some.

    A floating leaf is cast where the source has another floating type, with a warning; nothing else
    is converted. What the source has besides is left there, with a notice.

    Args:
        source: a run directory, whose newest intact commit is read, or a `.safetensors` file.
        params: gives structure, shapes, types and places; what is not taken stays.
        only: regular expression, searched in the paths of `params`: take these alone.
        rename: regular expression to replacement, applied in order to the paths of the source:
            `{r"\\.": "/"}` for names with dots, `{"^encoder/": "backbone/"}` for another module.
        best: of a run, take the commit with the best score of this name instead.
        mode: `min` if a smaller score is better, `max` if a larger is; None goes by its name.

    Returns:
        Parameters like `params`.

    Raises:
        FileNotFoundError: there is no such run, commit or file.
        DamagedCommit: no commit is intact.
        ImportError: safetensors is not installed.
        ValueError: leaves are missing in the source, or have another shape or type: all are listed;
            or a value is too large for the type that it is to be cast to.

    >>> import tempfile
    >>> old = {"body": {"w": jnp.arange(3.0)}, "head": jnp.ones(10)}
    >>> new = {"body": {"w": jnp.zeros(3)}, "head": jnp.zeros(5)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export_params(old, f"{folder}/old.safetensors")
    ...     load_params(f"{folder}/old.safetensors", new, only="^body/")["body"]
    {'w': Array([0., 1., 2.], dtype=float32)}
    """
    arrays, where = _read(local(source, "load_params"), best, mode)
    arrays = _renamed(arrays, rename or {}, where)
    pairs = jax.tree_util.tree_leaves_with_path(params)
    leaves = {path_name(path): leaf for path, leaf in pairs}
    wanted = {path: x for path, x in leaves.items() if only is None or re.search(only, path)}
    if not wanted:
        raise ValueError(
            f"only={only!r} is found in no path of params; there is: {_few(leaves)}."
            f"{nearest(only, leaves)}"
        )
    lines = [
        f"{shown(path) or _ITSELF}: saved "
        f"{described(arrays[path]) if path in arrays else 'nothing'}, wanted {described(leaf)}"
        for path, leaf in wanted.items()
        if path not in arrays or not _fits(arrays[path], leaf)
    ]
    if lines:
        unused = arrays.keys() - wanted.keys()
        raise ValueError(
            f"{where} does not fit the parameters:\n  "
            + "\n  ".join(lines)
            + f"\nname with only= what to take, or with rename= how paths change; it has besides: "
            f"{_few(unused)}"
        )
    taken = {path: _placed(path, arrays[path], leaf) for path, leaf in wanted.items()}
    if cast := [path for path in taken if arrays[path].dtype != leaves[path].dtype]:
        kinds = {f"{arrays[path].dtype} to {leaves[path].dtype}" for path in cast}
        log.warning("cast %s: %s", " and ".join(sorted(kinds)), _few(cast))
    log.info(
        "took %d of %d parameters from %s; as they were: %s; not used: %s",
        *(len(taken), len(leaves), where),
        *(_few(leaves.keys() - taken.keys()), _few(arrays.keys() - taken.keys())),
    )
    return jax.tree.unflatten(
        jax.tree.structure(params), [taken.get(path, leaf) for path, leaf in leaves.items()]
    )


def export_params(params: PyTree, path: str | os.PathLike[str]) -> None:
    """Write parameters to a safetensors file, under their paths: `layers/0/kernel`.

    The file appears at once or not at all, in the place of an earlier one. `load_params` reads the
    same bits back. On several processes each calls it, and the first one writes.

    Args:
        params: pytree of arrays.
        path: of the file; its folder must be there.

    Raises:
        ImportError: safetensors is not installed.
        OSError: the file cannot be written.
        TypeError: a leaf is of a type that such files do not hold.
        ValueError: two leaves share a path.
    """
    library = _safetensors()
    pairs = [(path_name(at), x) for at, x in jax.tree_util.tree_leaves_with_path(params)]
    names = [name for name, _ in pairs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"leaves share a path, so that none could be read: {', '.join(twice)}")
    odd = [f"{n}: {described(x)}" for n, x in pairs if str(getattr(x, "dtype", "")) not in DTYPES]
    if odd:
        raise TypeError(
            "a safetensors file holds arrays of numbers and truths; got\n  "
            + "\n  ".join(odd)
            + f"\ncast them first, to one of: {', '.join(DTYPES)}"
        )
    arrays = {name: _on_host(leaf) for name, leaf in pairs}
    if not is_lead():
        return
    file = local(path, "export_params")
    with replacing(file) as beside:
        library.save_file(arrays, beside, metadata={"format": "np", "writer": "entracte"})


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        error.add_note('safetensors files need: pip install "entracte[safetensors]"')
        raise
    return safetensors.numpy


def _read(source: Path, best: str | None, mode: str | None) -> tuple[dict[str, np.ndarray], str]:
    if source.is_dir():
        return read_params(source, best=best, mode=mode)
    if not source.is_file():
        raise FileNotFoundError(
            f"there is neither a run directory nor a safetensors file at {source}"
        )
    if best is not None:
        raise ValueError(f"best={best!r} chooses among the commits of a run; {source} is a file")
    library = _safetensors()
    try:
        return library.load_file(source), str(source)
    except Exception as error:
        raise ValueError(
            f"{source} cannot be read as a safetensors file: {shown(error)}"
        ) from error


def _renamed(
    arrays: Mapping[str, np.ndarray], rename: Mapping[str, str], where: str
) -> dict[str, np.ndarray]:
    renamed: dict[str, np.ndarray] = {}
    for path, array in arrays.items():
        new = path
        for pattern, replacement in rename.items():
            new = re.sub(pattern, replacement, new)
        if new in renamed:
            raise ValueError(f"rename gives two leaves of {where} the path {new!r}, {path!r} one")
        renamed[new] = array
    return renamed


def _fits(array: np.ndarray, leaf: Any) -> bool:
    if array.shape != getattr(leaf, "shape", None):
        return False
    return array.dtype == leaf.dtype or (_floating(array) and _floating(leaf))


def _floating(array: Any) -> bool:
    return bool(jnp.issubdtype(array.dtype, jnp.floating))


def _placed(path: str, array: np.ndarray, leaf: Any) -> Any:
    """Cast an array if need be, and put it where the leaf is."""
    if array.dtype != leaf.dtype:
        with np.errstate(over="ignore"):
            cast = array.astype(leaf.dtype)
        if lost := int((np.isfinite(array) & ~np.isfinite(cast)).sum()):
            raise ValueError(
                f"{shown(path) or _ITSELF}: {lost} of its {array.size} values, saved as "
                f"{array.dtype}, are too large for {leaf.dtype}: load into parameters of "
                f"{array.dtype}"
            )
        array = cast
    return on_device(array, leaf) if isinstance(leaf, jax.Array) else array.copy()


def _on_host(leaf: Any) -> np.ndarray:
    """Give an array in row-major order, which safetensors takes for granted."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        leaf = multihost_utils.process_allgather(leaf, tiled=True)
    return np.array(leaf, order="C")


def _few(paths: Any) -> str:
    """Name paths in a line, the first of many."""
    names = sorted(shown(path) or _ITSELF for path in paths)
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return (", ".join(names[:12]) or "nothing") + more
