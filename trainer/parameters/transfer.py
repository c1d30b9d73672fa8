"""Load parameters from another run or a file, by path, and export them to a file."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trainer.checkpoints.arrays.orbax_reader import find_orbax_tree, read_orbax_part
from trainer.checkpoints.arrays.rebuild import put_like
from trainer.checkpoints.load import read_params
from trainer.checkpoints.storage.bucket_path import BucketPath
from trainer.checkpoints.storage.disk_checkpoints import is_checkpoint
from trainer.checkpoints.storage.run_paths import RunPath, to_run_path
from trainer.checks.arguments import describe_value
from trainer.checks.paths import to_absolute_path
from trainer.checks.pytrees import describe_leaf, format_path
from trainer.checks.suggestions import suggest_name
from trainer.host.escaping import escape_text
from trainer.host.exception_notes import annotate_errors
from trainer.host.processes import fail_together, is_main_process
from trainer.parameters import file_formats
from trainer.placement.gathering import gather
from trainer.state import PyTree, TrainState

log = logging.getLogger("entracte")

PARTS = ("model_state", "params")
"""The parts of a run's state that can be loaded."""

Transform = Callable[[np.ndarray], np.ndarray]
"""Converts an array as it was saved to the array to load."""

_ITSELF = "params"
"""Name in messages of parameters that are a single array, whose path is empty."""


def load_params(
    source: str | os.PathLike[str],
    params: PyTree,
    *,
    only: str | None = None,
    rename: Mapping[str, str] | None = None,
    transform: Mapping[str, Transform] | None = None,
    part: str = "params",
    best: str | None = None,
    mode: str | None = None,
) -> PyTree:
    """Load parameters by path from another run or a file of arrays, all of them or some.

    A floating leaf is cast where the source has another floating type, with a warning; nothing else
    is converted unless `transform` names it. Other arrays of the source are ignored, with a notice.

    The batch statistics of a network are not parameters but its `model_state`, which another call
    loads: `load_params(run, state.model_state, part="model_state")`.

    Args:
        source: a run directory, or the URL of a run in a bucket, whose newest intact checkpoint is
            read; a `.safetensors` or `.npz` file; or a folder that Orbax saved: a tree, or a step
            of a `CheckpointManager` with the item `default` or `state`. Of a tree with `params` at
            its top, these.
        params: has the structure, shapes, types and devices; leaves that are not loaded stay.
        only: regular expression, searched in the paths of `params`: load only these.
        rename: regular expression to replacement, applied in order to the paths of the source:
            `{r"\\.": "/"}` for names with dots, `{"^encoder/": "backbone/"}` for another module.
        transform: regular expression, searched in the paths of `params`, to a function of the array
            as it was saved: `{"kernel$": np.transpose}` for matrices of torch, which are
            `[out, in]`; a square one fits either way. All that match are applied in order.
        part: of a run or a tree of Orbax, `params` or `model_state`.
        best: of a run, load the checkpoint with the best score of this name instead.
        mode: `min` if a smaller score is better, `max` if a larger is; None: by its name.

    Returns:
        Parameters like `params`.

    Raises:
        FileNotFoundError: there is no such run, checkpoint or file.
        DamagedCheckpoint: no checkpoint is intact, or Orbax cannot read its own.
        ImportError: safetensors is not installed.
        TypeError: `params` is a whole state.
        ValueError: the source lacks leaves, or they have another shape or type (all are listed); a
            value is too large for its new type; or `only` or `transform` matches no path.

    >>> import tempfile
    >>> old = {"body": {"w": jnp.arange(3.0)}, "head": jnp.ones(10)}
    >>> new = {"body": {"w": jnp.zeros(3)}, "head": jnp.zeros(5)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export_params(old, f"{folder}/old.safetensors")
    ...     load_params(f"{folder}/old.safetensors", new, only="^body/")["body"]
    {'w': Array([0., 1., 2.], dtype=float32)}
    """
    if isinstance(params, TrainState):
        remedy = "pass its params, state.replace(params=load_params(source, state.params))"
        raise TypeError(f"load_params fills parameters; got a TrainState: {remedy}")
    arrays, where, notice = _read(to_run_path(source, "load_params"), part, best, mode)
    arrays, names = _rename_paths(arrays, rename or {}, where)
    pairs = jax.tree_util.tree_leaves_with_path(params)
    leaves = {format_path(path): leaf for path, leaf in pairs}
    if not leaves:
        raise ValueError(f"there is nothing to load into: {part} has no arrays")
    wanted = {path: x for path, x in leaves.items() if only is None or re.search(only, path)}
    if not wanted:
        raise ValueError(
            f"only={only!r} matches no path of params; there is: {_format_paths(leaves)}."
            f"{suggest_name(only, leaves)}"
        )
    arrays, transformed = _apply_transforms(arrays, transform or {}, wanted)
    lines = [
        f"{escape_text(path) or _ITSELF}: saved {_describe_misfit(path, arrays.get(path), leaf)}"
        for path, leaf in wanted.items()
        if path not in arrays or not _fits(arrays[path], leaf)
    ]
    if lines:
        unused = arrays.keys() - wanted.keys()
        raise ValueError(
            f"{where} does not fit the parameters:\n  "
            + "\n  ".join(lines)
            + "\nselect leaves with only=, or change paths with rename=; the source also has: "
            + _format_paths(unused)
        )
    loaded = {path: _put(path, arrays[path], leaf) for path, leaf in wanted.items()}
    if cast := [path for path in loaded if arrays[path].dtype != leaves[path].dtype]:
        kinds = {f"{arrays[path].dtype} to {leaves[path].dtype}" for path in cast}
        log.warning("cast %s: %s", " and ".join(sorted(kinds)), _format_paths(cast))
    _warn_of_squares(loaded, names, transformed)
    unchanged, unused = leaves.keys() - loaded.keys(), arrays.keys() - loaded.keys()
    log.info(
        "loaded %d of %d parameters from %s; unchanged: %s; not used: %s%s",
        *(len(loaded), len(leaves), where),
        *(_format_paths(unchanged), _format_paths(unused), notice),
    )
    filled = [loaded.get(path, leaf) for path, leaf in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(params), filled)


def export_params(params: PyTree, path: str | os.PathLike[str]) -> None:
    """Write parameters to a file, under their paths: `layers/0/kernel`.

    The file appears complete or not at all, and replaces an earlier one. `load_params` reads the
    same bits back. On several processes all must call it, and the main process writes.

    Args:
        params: pytree of arrays; for a network with batch statistics
            `{"params": state.params, "model_state": state.model_state}`.
        path: of the file, `.safetensors` or `.npz`; its folder must exist.

    Raises:
        ImportError: safetensors is not installed.
        OSError: the file cannot be written.
        TypeError: the file does not support the type of a leaf.
        ValueError: two leaves share a path, or the suffix is another.
    """
    if isinstance(params, str | os.PathLike):
        raise TypeError(
            f"export_params(params, path) takes the parameters first; got {describe_value(params)}"
        )
    file = to_absolute_path(path, "export_params")
    file_formats.check_path(file)
    pairs = [(format_path(at), x) for at, x in jax.tree_util.tree_leaves_with_path(params)]
    counts = Counter(name for name, _ in pairs)
    if twice := sorted(name for name, count in counts.items() if count > 1):
        raise ValueError(f"leaves share a path, so they could not be read: {', '.join(twice)}")
    file_formats.check_types(dict(pairs), file)
    arrays = {name: _fetch(leaf) for name, leaf in pairs}
    with fail_together(f"writing {file}"):  # afterwards the others find it
        if is_main_process():
            file_formats.write_arrays(arrays, file)


def _read(
    source: RunPath, part: str, best: str | None, mode: str | None
) -> tuple[dict[str, np.ndarray], str, str]:
    """Return the arrays by path, their origin, and a notice of what else can be loaded."""
    if part not in PARTS:
        raise ValueError(
            f"part must be params or model_state; got {part!r}.{suggest_name(part, PARTS)}"
        )
    tree = find_orbax_tree(source)
    if isinstance(source, BucketPath) or (source.is_dir() and tree is None):
        arrays, where, parts = read_params(source, part=part, best=best, mode=mode)
        more = part == "params" and "model_state" in parts
        return arrays, where, "; its model_state is loaded with part='model_state'" if more else ""
    if not source.is_file() and tree is None:
        raise FileNotFoundError(f"neither a run directory nor a file of parameters is at {source}")
    for name, value, default in (("best", best, None), ("part", part, "params")):
        if value != default and (tree is None or name != "part"):
            kind = "a file" if tree is None else "one checkpoint of Orbax"
            raise ValueError(f"{name}={value!r} selects within a run; {source} is {kind}")
    if tree is not None:
        if is_checkpoint(tree.parent):
            raise ValueError(
                f"{tree} is a part of a checkpoint of this library, and Orbax does not verify "
                "its checksums: give the directory of the run, and best= or nothing for the newest"
            )
        return read_orbax_part(tree, part), f"{tree} (Orbax)", ""
    return file_formats.read_arrays(source), str(source), ""


def _rename_paths(
    arrays: Mapping[str, np.ndarray], rename: Mapping[str, str], where: str
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the arrays by their new paths, and the old paths by the new ones."""
    names: dict[str, str] = {}
    for path in arrays:
        new = path
        for pattern, replacement in rename.items():
            new = re.sub(pattern, replacement, new)
        if new in names:
            raise ValueError(f"rename gives two leaves of {where} the path {new!r}, {path!r} one")
        names[new] = path
    return {new: arrays[path] for new, path in names.items()}, names


def _apply_transforms(
    arrays: Mapping[str, np.ndarray], transform: Mapping[str, Transform], wanted: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], set[str]]:
    """Return the transformed arrays, and the paths of those that a transform matched."""
    changed = dict(arrays)
    matched: set[str] = set()
    for pattern, function in transform.items():
        found = [path for path in wanted if path in arrays and re.search(pattern, path)]
        if not found:
            raise ValueError(
                f"transform names {pattern!r}, which matches no path that is loaded; there is: "
                f"{_format_paths(wanted)}.{suggest_name(pattern, wanted)}"
            )
        for path in found:
            where = f"in transform[{pattern!r}] of {path}, {describe_leaf(arrays[path])}"
            with annotate_errors(where):
                changed[path] = np.asarray(function(changed[path]))
        matched.update(found)
    return changed, matched


def _describe_misfit(path: str, array: np.ndarray | None, leaf: Any) -> str:
    if array is None:
        return f"nothing, wanted {describe_leaf(leaf)}"
    line = f"{describe_leaf(array)}, wanted {describe_leaf(leaf)}"
    if array.ndim == 2 and array.T.shape == getattr(leaf, "shape", None):
        line += f"; its transpose fits: transform={{{path!r}: np.transpose}}"
    return line


def _warn_of_squares(
    loaded: Mapping[str, Any], names: Mapping[str, str], transformed: set[str]
) -> None:
    """Warn of square matrices that look like torch's, which fit either way."""
    square = [
        path
        for path, leaf in loaded.items()
        if path.endswith("kernel") and names[path].endswith("weight") and path not in transformed
        if leaf.ndim == 2 and leaf.shape[0] == leaf.shape[1]
    ]
    if square:
        log.warning(
            "%s: square, and named weight in the source, as the matrices [out, in] of torch are; "
            'loaded unchanged. transform={"kernel$": np.transpose} transposes them',
            _format_paths(square),
        )


def _fits(array: np.ndarray, leaf: Any) -> bool:
    floating = (jnp.issubdtype(part.dtype, jnp.floating) for part in (array, leaf))
    same_shape = array.shape == getattr(leaf, "shape", None)
    return same_shape and (array.dtype == leaf.dtype or all(floating))


def _put(path: str, array: np.ndarray, leaf: Any) -> Any:
    """Cast an array to the dtype of a leaf if necessary, and put it on the leaf's devices."""
    if array.dtype != leaf.dtype:
        with np.errstate(over="ignore"):
            cast = array.astype(leaf.dtype)
        if lost := int((np.isfinite(array) & ~np.isfinite(cast)).sum()):
            raise ValueError(
                f"{escape_text(path) or _ITSELF}: {lost} of its {array.size} values, saved as "
                f"{array.dtype}, are too large for {leaf.dtype}: load into parameters of "
                f"{array.dtype}"
            )
        array = cast
    return put_like(array, leaf) if isinstance(leaf, jax.Array) else array.copy()


def _fetch(leaf: Any) -> np.ndarray:
    """Fetch an array in row-major order, which safetensors assumes."""
    return np.array(gather(leaf), order="C")


def _format_paths(paths: Any) -> str:
    """List paths in a line, at most twelve."""
    names = sorted(escape_text(path) or _ITSELF for path in paths)
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return (", ".join(names[:12]) or "nothing") + more
