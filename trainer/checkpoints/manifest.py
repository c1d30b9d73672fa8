"""The manifest of a commit: what was saved, of which type, and how to tell that it is intact."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xxhash

from trainer.checks.pytrees import format_path
from trainer.host.escaping import escape_lines, escape_text
from trainer.host.machine import devices
from trainer.state import PyTree, TrainState

FORMAT = 1
"""The version of what is written; a reader refuses what is newer than itself."""


class DamagedCheckpoint(RuntimeError):  # noqa: N818 (damage is what it is, and no error of the program)
    """The files of a commit are not what was written; what they say is shown and not obeyed."""

    def __init__(self, told: object) -> None:
        super().__init__(escape_lines(told))


@dataclass(frozen=True)
class Leaf:
    """One leaf of a saved tree; an array's bytes lie in the commit's buffer, a scalar's value here.

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
    """A scalar as JSON that gives back every bit (see `encode_scalar`)."""

    def __str__(self) -> str:
        kind = escape_text(self.type)
        return kind if self.shape is None else f"{kind}{list(self.shape)}"


def is_key(value: Any) -> bool:
    """Say whether an array is one of typed random keys."""
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


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
    """Give a Python scalar as JSON that keeps every bit: numbers in hexadecimal."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return hex(value)
    return value.hex() if isinstance(value, float) else value


def decode_scalar(leaf: Leaf) -> Any:
    """Give back the scalar that `describe_leaf` wrote, type and bits unchanged.

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


def flatten_section(name: str, tree: PyTree) -> tuple[list[Leaf], list[Any], Any]:
    """Flatten one section of a state; None is a leaf, since a type must not change to or from it.

    Returns:
        The leaves described, their values, and the structure.

    Raises:
        TypeError: a leaf cannot be saved.
        ValueError: two leaves share a path.
    """
    prefix = tuple(jax.tree_util.DictKey(part) for part in name.split("/", 1)) if name else ()
    pairs, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is None)
    leaves = [describe_leaf(format_path((*prefix, *path)), value) for path, value in pairs]
    if len({leaf.path for leaf in leaves}) < len(leaves):
        paths = [leaf.path for leaf in leaves]
        twice = sorted({path for path in paths if paths.count(path) > 1})
        raise ValueError(
            f"two leaves share a path, so that neither could be found again: {', '.join(twice)}"
        )
    return leaves, [value for _, value in pairs], structure


def sections(state: TrainState) -> dict[str, PyTree]:
    """Split a state into what is restored or left out as a whole: itself, and each memory.

    Scores belong to an event and are not part of what is saved.

    Returns:
        The state without host dictionaries at "", and every memory at `hook_state/<its name>`.
    """
    return {
        "": state.replace(scores={}, hook_state={}),
        **{f"hook_state/{name}": memory for name, memory in state.hook_state.items()},
    }


def compare_leaves(saved: Iterable[Leaf], wanted: Iterable[Leaf]) -> list[str]:
    """List each path whose leaf is missing on one side, or of another type or shape.

    >>> compare_leaves([Leaf("w", "float32", (2,))], [Leaf("w", "float32", (3,)), Leaf("n", "int")])
    ['w: saved float32[2], wanted float32[3]', 'n: saved nothing, wanted int']
    """
    before = {leaf.path: str(leaf) for leaf in saved}
    after = {leaf.path: str(leaf) for leaf in wanted}
    return [
        f"{escape_text(path)}: saved {before.get(path, 'nothing')}, wanted "
        f"{after.get(path, 'nothing')}"
        for path in [*before, *(path for path in after if path not in before)]
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
    """Make the manifest of a commit, all of it JSON.

    Args:
        epoch: the number of the commit.
        leaves: the leaves of every section, with offsets and checksums.
        scores: metrics of the committed event; what is not finite is written as a string.
        config: the run's configuration, if it is to be compared on restore.
        settings: what the run is made of, as `trainer.loop.run_description` lays it out.
        run: the id of the run.
    """
    return {
        "format": FORMAT,
        "epoch": epoch,
        "run": run,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **_VERSIONS},
        "devices": devices(),
        "hooks": [name.removeprefix("hook_state/") for name in leaves if name],
        "scores": {k: v if np.isfinite(v) else str(v) for k, v in scores.items()},
        "config": config,
        "settings": settings,
        "leaves": {name: [vars(leaf) for leaf in group] for name, group in leaves.items()},
    }


_VERSIONS = {
    name: metadata.version(name)
    for name in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
}


def list_environment_changes(manifest: Mapping[str, Any]) -> list[str]:
    """List what bits depend on that is not as it was when the commit was written.

    What the commit does not tell, since an older version of this library wrote it, is left out.

    >>> list_environment_changes({"versions": {"jax": "0.4.1", "numpy": "1.0"},
    ...     "devices": "1024 abacus"})
    ['jax: saved with 0.4.1, now ...', 'devices: saved with 1024 abacus, now ...']
    """
    saved = {name: manifest["versions"].get(name) for name in ("jax", "jaxlib")}
    saved["devices"] = manifest.get("devices")
    now = {**_VERSIONS, "devices": devices()}
    return [
        f"{name}: saved with {before}, now {now[name]}"
        for name, before in saved.items()
        if before is not None and before != now[name]
    ]


def same_software(manifest: Mapping[str, Any]) -> bool:
    """Say whether the libraries are those that wrote a commit."""
    return all(manifest["versions"].get(name) == now for name, now in _VERSIONS.items())


def parse_leaves(manifest: Mapping[str, Any]) -> dict[str, list[Leaf]]:
    """Give the leaves of every section, as they were saved."""
    return {
        name: [
            Leaf(**{**leaf, "shape": None if leaf["shape"] is None else tuple(leaf["shape"])})
            for leaf in group
        ]
        for name, group in manifest["leaves"].items()
    }


def digest(leaves: Iterable[Leaf]) -> int:
    """Hash what leaves hold, by their checksums and values: 62 bits.

    >>> digest([Leaf("n", "int", value="0x1")]) == digest([Leaf("n", "int", value="0x2")])
    False
    """
    lines = (f"{leaf.path}={leaf}:{leaf.checksum}:{leaf.value}" for leaf in leaves)
    return xxhash.xxh3_64_intdigest("\n".join(lines).encode()) >> 2


def parse_scores(manifest: Mapping[str, Any]) -> dict[str, float]:
    """Give the scores of a commit, those that are not finite included."""
    return {key: float(value) for key, value in manifest["scores"].items()}


_OPENING, _JOINT = b'{"checksum": "', b'", "manifest": '


def encode_manifest(manifest: Mapping[str, Any]) -> bytes:
    """Give the manifest as the bytes of a JSON file that carries its own checksum."""
    body = json.dumps(manifest, allow_nan=False).encode() + b"}\n"
    return _OPENING + xxhash.xxh3_64_hexdigest(body).encode() + _JOINT + body


def decode_manifest(content: bytes) -> dict[str, Any]:
    """Give the manifest that `encode_manifest` wrote.

    >>> decode_manifest(encode_manifest({"format": 1, "epoch": 3}))
    {'format': 1, 'epoch': 3}

    Raises:
        DamagedCommit: a bit is not as it was written, or it is no JSON object.
    """
    head, joint, body = content.partition(_JOINT)
    if not joint or head != _OPENING + xxhash.xxh3_64_hexdigest(body).encode():
        raise DamagedCheckpoint("its manifest does not have its checksum")
    try:
        manifest = json.loads(body[:-2])
    except (ValueError, RecursionError) as error:
        raise DamagedCheckpoint(f"its manifest is no JSON ({type(error).__name__})") from error
    if not isinstance(manifest, dict):
        raise DamagedCheckpoint("its manifest is no JSON object")
    return manifest
