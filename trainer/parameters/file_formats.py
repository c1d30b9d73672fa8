"""Files of named arrays: safetensors, and numpy's `.npz`."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trainer.checks.pytrees import describe_leaf
from trainer.host.atomic_files import atomic_replace
from trainer.host.escaping import escape_text
from trainer.host.extras import require_extra

NUMPY = (
    *("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
    *("float16", "float32", "float64", "complex64"),
)

DTYPES = {".npz": (*NUMPY, "complex128"), ".safetensors": (*NUMPY, "bfloat16")}
"""The dtypes that a kind of file, by its suffix, holds and that numpy reads back bit for bit."""


def check_path(path: Path) -> None:
    """Check that the suffix of a path names a supported kind of file.

    Raises:
        ImportError: safetensors is needed, and not installed.
        ValueError: the suffix is another.
    """
    if path.suffix not in DTYPES:
        remedy = (
            ": save torch's parameters with safetensors.torch.save_file(model.state_dict(), "
            f'"{path.stem}.safetensors")'
        )
        raise ValueError(
            f"a file of parameters is a .safetensors or a .npz file, by its suffix; got {path.name}"
            f"{remedy if path.suffix in ('.pt', '.pth', '.bin', '.ckpt') else ''}"
        )
    if path.suffix == ".safetensors":
        _safetensors()


def check_types(leaves: Mapping[str, Any], path: Path) -> None:
    """Raise TypeError, listing all leaves whose dtypes a file of this kind does not support."""
    known = DTYPES[path.suffix]
    unsupported = [
        f"{name}: {describe_leaf(leaf)}"
        for name, leaf in leaves.items()
        if str(getattr(leaf, "dtype", "")) not in known
    ]
    if unsupported:
        instead = "" if path.suffix == ".safetensors" else "; a .safetensors file holds bfloat16"
        raise TypeError(
            f"a {path.suffix} file holds arrays of numbers and booleans; got\n  "
            + "\n  ".join(unsupported)
            + f"\ncast them first, to one of: {', '.join(known)}{instead}"
        )


def write_arrays(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Write arrays under their names; the file appears complete or not at all."""
    with atomic_replace(path) as beside:
        if path.suffix == ".safetensors":
            metadata = {"format": "np", "writer": "entracte"}
            _safetensors().save_file(arrays, beside, metadata=metadata)
            return
        # Not np.savez: an array named `file` would collide with its own argument.
        with zipfile.ZipFile(beside, "w") as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, array)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read all arrays of a file, by its suffix.

    Raises:
        ImportError, ValueError: as `check_path`; or the file is damaged.
    """
    check_path(path)
    try:
        if path.suffix == ".safetensors":
            return _safetensors().load_file(path)
        with np.load(path) as archive:
            return dict(archive)
    except Exception as error:
        kind = path.suffix.removeprefix(".")
        raise ValueError(f"{path} cannot be read as a {kind} file: {escape_text(error)}") from error


def _safetensors() -> Any:
    with require_extra("safetensors", "a .safetensors file", "safetensors"):
        import safetensors.numpy
    return safetensors.numpy
