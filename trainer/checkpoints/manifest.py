"""The manifest of a checkpoint: which leaves were saved, their types and their checksums."""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import jax
import numpy as np
import xxhash

from trainer.checks.pytrees import format_path
from trainer.host.escaping import escape_lines, escape_text
from trainer.host.machine import LIBRARIES, describe_devices
from trainer.state import PyTree, TrainState

FORMAT = 1
"""The version of the format that is written; a reader refuses a newer one."""


class DamagedCheckpoint(RuntimeError):  # noqa: N818 - what is the case, as its message says
    """The files of a checkpoint are not as they were written. Text from them is escaped."""

    def __init__(self, message: object) -> None:
        super().__init__(escape_lines(message))


@dataclass(frozen=True)
class Leaf:
    """One leaf of a saved tree: where an array's bytes are in the buffer, or a scalar's value.

    >>> str(Leaf("params/w", "float32", (2, 3)))
    'float32[2, 3]'
    """

    path: str
    type: str
    """dtype of an array or key, `numpy.<dtype>` of a numpy scalar, or a Python type's name."""
    shape: tuple[int, ...] | None = None
    """None for scalars."""
    offset: int = 0
    """Where an array's bytes begin in the buffer."""
    bytes: int = 0
    checksum: str = ""
    """xxh3_64 of an array's bytes and the gap after them, 16 hexadecimal digits."""
    value: Any = None
    """A scalar as JSON that keeps every bit (see `encode_scalar`)."""

    def __str__(self) -> str:
        kind = escape_text(self.type)
        return kind if self.shape is None else f"{kind}{list(self.shape)}"


Section = tuple[list[Leaf], list[Any], Any]
"""A part of a state, restored or left out as a whole: its leaves, their values, the structure."""


def describe_leaf(path: str, value: Any) -> Leaf:
    """Describe a leaf without reading an array's contents.

    >>> describe_leaf("hook_state/best", 0.5)
    Leaf(path='hook_state/best', type='float', shape=None, offset=0, bytes=0, checksum='',
         value='0x1.0000000000000p-1')

    Raises:
        TypeError: a value of this type cannot be saved.
    """
    if isinstance(value, jax.Array) or (type(value) is np.ndarray and not value.dtype.hasobject):
        size = value.size * value.dtype.itemsize
        return Leaf(path, str(value.dtype), tuple(value.shape), bytes=size)
    if isinstance(value, np.generic) and not isinstance(value, np.flexible | np.object_):
        return Leaf(path, f"numpy.{value.dtype}", value=value.tobytes().hex())
    if value is None or type(value) in (bool, int, float, str):
        name = "None" if value is None else type(value).__name__
        return Leaf(path, name, value=encode_scalar(value))
    raise TypeError(
        f"a state holds arrays, numbers, strings and None, all else cannot be saved; {path} is "
        f"{type(value).__module__}.{type(value).__qualname__}: keep it in a closure"
    )


def encode_scalar(value: bool | int | float | str | None) -> bool | str | None:
    """Return a Python scalar as JSON that keeps every bit: numbers in hexadecimal."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return hex(value)
    return value.hex() if isinstance(value, float) else value


def decode_scalar(leaf: Leaf) -> Any:
    """Return the scalar that `describe_leaf` encoded, type and bits unchanged.

    >>> decode_scalar(describe_leaf("x", float("-inf"))), decode_scalar(describe_leaf("x",
    ...     np.int8(-3)))
    (-inf, np.int8(-3))
    """
    if leaf.type.startswith("numpy."):
        dtype = np.dtype(leaf.type.removeprefix("numpy."))
        return np.frombuffer(bytes.fromhex(leaf.value), dtype)[0]
    if leaf.type == "int":
        return int(leaf.value, 16)
    return float.fromhex(leaf.value) if leaf.type == "float" else leaf.value


def flatten_section(name: str, tree: PyTree) -> Section:
    """Flatten one section of a state; None is a leaf, since no type may change to or from it.

    Raises:
        TypeError: a leaf cannot be saved.
        ValueError: two leaves share a path.
    """
    prefix = tuple(jax.tree_util.DictKey(part) for part in name.split("/", 1)) if name else ()
    pairs, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is None)
    leaves = [describe_leaf(format_path((*prefix, *path)), value) for path, value in pairs]
    counts = Counter(leaf.path for leaf in leaves)
    if len(counts) < len(leaves):
        twice = sorted(path for path, count in counts.items() if count > 1)
        raise ValueError(
            f"two leaves share a path, so that neither could be found again: {', '.join(twice)}"
        )
    return leaves, [value for _, value in pairs], structure


def flatten_state(state: TrainState) -> dict[str, Section]:
    """Flatten a state: without host dictionaries at "", hook states at `hook_state/<name>`.

    Scores belong to an event and are not saved.
    """
    sections = {"": state.replace(scores={}, hook_state={})}
    sections |= {f"hook_state/{name}": tree for name, tree in state.hook_state.items()}
    return {name: flatten_section(name, tree) for name, tree in sections.items()}


def compare_leaves(saved: Iterable[Leaf], wanted: Iterable[Leaf]) -> list[str]:
    """List each path whose leaf is missing on one side, or has another type or shape.

    >>> compare_leaves([Leaf("w", "float32", (2,))], [Leaf("w", "float32", (3,)), Leaf("n", "int")])
    ['w: saved float32[2], wanted float32[3]', 'n: saved nothing, wanted int']
    """
    before = {leaf.path: str(leaf) for leaf in saved}
    after = {leaf.path: str(leaf) for leaf in wanted}
    return [
        f"{escape_text(path)}: saved {before.get(path, 'nothing')}, wanted "
        f"{after.get(path, 'nothing')}"
        for path in before | after
        if before.get(path) != after.get(path)
    ]


def build_manifest(
    epoch: int,
    leaves: Mapping[str, Sequence[Leaf]],
    *,
    scores: Mapping[str, float],
    config: Mapping[str, Any] | None,
    settings: Mapping[str, Mapping[str, str]] | None = None,
    run: str | None = None,
) -> dict[str, Any]:
    """Build the manifest of a checkpoint, as plain JSON data.

    Args:
        epoch: the number of the checkpoint.
        leaves: the leaves of every section, with offsets and checksums.
        scores: metrics of the saved event; those that are not finite are written as strings.
        config, settings: of the run, as of `Checkpoints.save`.
        run: the id of the run.
    """
    return {
        "format": FORMAT,
        "epoch": epoch,
        "run": run,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **_VERSIONS},
        "devices": describe_devices(),
        "hooks": [name.removeprefix("hook_state/") for name in leaves if name],
        "scores": {k: v if np.isfinite(v) else str(v) for k, v in scores.items()},
        "config": config,
        "settings": settings,
        "leaves": {name: [vars(leaf) for leaf in group] for name, group in leaves.items()},
    }


_VERSIONS = {name: metadata.version(name) for name in LIBRARIES if name != "entracte"}


def list_environment_changes(manifest: Mapping[str, Any]) -> list[str]:
    """List the versions and devices that changed since the checkpoint and may change bits.

    Those that a checkpoint of an older version does not have are left out.

    >>> list_environment_changes({"versions": {"jax": "0.4.1", "numpy": "1.0"},
    ...     "devices": "1024 abacus"})
    ['jax: saved with 0.4.1, now ...', 'devices: saved with 1024 abacus, now ...']
    """
    saved = {name: manifest["versions"].get(name) for name in ("jax", "jaxlib")}
    saved["devices"] = manifest.get("devices")
    now = {**_VERSIONS, "devices": describe_devices()}
    return [
        f"{name}: saved with {before}, now {now[name]}"
        for name, before in saved.items()
        if before is not None and before != now[name]
    ]


def has_same_software(manifest: Mapping[str, Any]) -> bool:
    """Return whether the versions of the libraries are those that wrote a checkpoint."""
    return all(manifest["versions"].get(name) == now for name, now in _VERSIONS.items())


def parse_leaves(manifest: Mapping[str, Any]) -> dict[str, list[Leaf]]:
    """Return the leaves of every section, as they were saved."""
    return {
        name: [
            Leaf(**{**leaf, "shape": None if leaf["shape"] is None else tuple(leaf["shape"])})
            for leaf in group
        ]
        for name, group in manifest["leaves"].items()
    }


def compute_digest(leaves: Iterable[Leaf]) -> int:
    """Compute a hash of the content of leaves, from their checksums and values: 62 bits.

    >>> compute_digest([Leaf("n", "int", value="0x1")]) == compute_digest([Leaf("n", "int",
    ...     value="0x2")])
    False
    """
    lines = (f"{leaf.path}={leaf}:{leaf.checksum}:{leaf.value}" for leaf in leaves)
    return xxhash.xxh3_64_intdigest("\n".join(lines).encode()) >> 2


def parse_scores(manifest: Mapping[str, Any]) -> dict[str, float]:
    """Return the scores of a checkpoint, also those that are not finite."""
    return {key: float(value) for key, value in manifest["scores"].items()}


_HEAD, _MIDDLE = b'{"checksum": "', b'", "manifest": '


def encode_manifest(manifest: Mapping[str, Any]) -> bytes:
    """Return the manifest as the bytes of a JSON file with its own checksum."""
    body = json.dumps(manifest, allow_nan=False).encode() + b"}\n"
    return _HEAD + xxhash.xxh3_64_hexdigest(body).encode() + _MIDDLE + body


def decode_manifest(content: bytes) -> dict[str, Any]:
    """Return the manifest that `encode_manifest` wrote.

    >>> decode_manifest(encode_manifest({"format": 1, "epoch": 3}))
    {'format': 1, 'epoch': 3}

    Raises:
        DamagedCheckpoint: a bit changed, or it is no JSON object.
    """
    head, joint, body = content.partition(_MIDDLE)
    if not joint or head != _HEAD + xxhash.xxh3_64_hexdigest(body).encode():
        raise DamagedCheckpoint("its manifest does not have its checksum")
    try:
        manifest = json.loads(body[:-2])
    except (ValueError, RecursionError) as error:
        raise DamagedCheckpoint(f"its manifest is no JSON ({type(error).__name__})") from error
    if not isinstance(manifest, dict):
        raise DamagedCheckpoint("its manifest is no JSON object")
    return manifest
