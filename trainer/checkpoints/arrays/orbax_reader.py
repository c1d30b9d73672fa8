"""Arrays of a checkpoint that Orbax wrote, in any of its formats, by their paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from trainer.checkpoints.arrays.damage import DamagedCheckpoint
from trainer.checkpoints.arrays.orbax_index import METADATA
from trainer.checkpoints.storage.bucket_path import BucketPath
from trainer.checkpoints.storage.run_paths import RunPath
from trainer.checks.pytrees import format_path
from trainer.host.escaping import escape_text

_ITEMS = ("default", "state")
"""What a `CheckpointManager` calls the folder of the tree in a step's folder."""


def find_orbax_tree(folder: RunPath) -> Path | None:
    """Return where a folder holds a tree that Orbax saved: itself, or an item; None if nowhere.

    A run directory of this library holds none, nor is one looked for in a bucket.

    >>> find_orbax_tree(Path("nowhere"))
    """
    if isinstance(folder, BucketPath) or (folder / "checkpoints").is_dir():
        return None
    places = (folder, *(folder / item for item in _ITEMS))
    return next((place for place in places if (place / METADATA).is_file()), None)


def read_orbax_arrays(folder: Path) -> dict[str, np.ndarray]:
    """Read all arrays of a tree that Orbax saved, onto the host; other leaves are left out.

    Args:
        folder: from `find_orbax_tree`.

    Returns:
        Path to array: `layers/0/kernel`.

    Raises:
        DamagedCheckpoint: Orbax cannot read it.
    """
    import orbax.checkpoint as ocp

    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            kinds = checkpointer.metadata(folder).item_metadata.tree
            arguments = jax.tree.map(_on_host, kinds)
            restore = ocp.args.PyTreeRestore(restore_args=arguments)
            tree = checkpointer.restore(folder, args=restore)
    except Exception as error:
        raise DamagedCheckpoint(
            f"{folder} cannot be read as a checkpoint of Orbax ({type(error).__name__}: {error})"
        ) from error
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    return {format_path(path): x for path, x in pairs if isinstance(x, np.ndarray)}


def read_orbax_part(folder: Path, part: str) -> dict[str, np.ndarray]:
    """Read the arrays below a part of a tree that Orbax saved; without `params` these are all.

    Raises:
        DamagedCheckpoint: Orbax cannot read it.
        ValueError: it has no such part.
    """
    arrays = read_orbax_arrays(folder)
    split = {path: path.partition("/") for path in arrays}
    below = {split[path][2]: array for path, array in arrays.items() if split[path][0] == part}
    if not below and part != "params":
        there = ", ".join(escape_text(name) for name in sorted({x[0] for x in split.values()}))
        raise ValueError(f"{folder} has no {part}; there is: {there or 'nothing'}")
    return below or arrays


def _on_host(kind: Any) -> Any:
    """Return the arguments that restore an array as numpy's, without its devices."""
    import orbax.checkpoint as ocp

    is_array = type(kind).__name__ == "ArrayMetadata"
    return ocp.RestoreArgs(restore_type=np.ndarray) if is_array else ocp.RestoreArgs()
