"""The manifest of a checkpoint: which leaves were saved, their types and their checksums.

It lists all leaves, and the pieces of arrays that the main process wrote. Where arrays are split
over processes, each of the others lists its own pieces in a part file, whose checksum it has.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import numpy as np
import xxhash

from trainer.checkpoints.arrays.damage import DamagedCheckpoint
from trainer.checkpoints.arrays.leaves import Leaf, Piece
from trainer.host.machine import LIBRARIES, describe_devices

FORMAT = 2
"""The version of the format that is written; a reader refuses a newer one. In version 1 all pieces
of a process lie in one file of the checkpoint."""


def build_manifest(
    epoch: int,
    leaves: Mapping[str, Sequence[Leaf]],
    *,
    scores: Mapping[str, float],
    config: Mapping[str, Any] | None,
    settings: Mapping[str, Mapping[str, str]] | None = None,
    run: str | None = None,
    mesh: str | None = None,
    parts: Sequence[str] = (),
) -> dict[str, Any]:
    """Build the manifest of a checkpoint, as plain JSON data.

    Args:
        epoch: the number of the checkpoint.
        leaves: the leaves of every section, with the pieces that the main process wrote.
        scores: metrics of the saved event; those that are not finite are written as strings.
        config, settings: of the run, as of `Checkpoints.save`.
        run: the id of the run.
        mesh: on which the state lies, described; None on one device.
        parts: the checksum of the part file of each other process that wrote one, in order.
    """
    return {
        "format": FORMAT,
        "epoch": epoch,
        "run": run,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **_VERSIONS},
        "devices": describe_devices(),
        "mesh": mesh,
        "hooks": [name.removeprefix("hook_state/") for name in leaves if name],
        "scores": {k: v if np.isfinite(v) else str(v) for k, v in scores.items()},
        "config": config,
        "settings": settings,
        "leaves": {name: [_to_json(leaf) for leaf in group] for name, group in leaves.items()},
        "parts": [*parts],
    }


def build_part(
    epoch: int, process: int, leaves: Mapping[str, Sequence[Leaf]], files: Mapping[str, int]
) -> dict[str, Any]:
    """Build the content of a part file: the leaves of which this process has pieces.

    Args:
        epoch: the number of the checkpoint.
        process: this one.
        leaves: of every section.
        files: the sizes of the shared files that pieces lie in.
    """
    written = {name: [leaf for leaf in group if leaf.pieces] for name, group in leaves.items()}
    return {
        "layout": compute_layout(written),
        "files": {**files},
        "format": FORMAT,
        "epoch": epoch,
        "process": process,
        "leaves": {name: [_to_json(leaf) for leaf in group] for name, group in written.items()},
    }


def compute_layout(leaves: Mapping[str, Sequence[Leaf]]) -> str:
    """Compute a hash of arrays and of where their pieces lie, which depends on no value.

    >>> compute_layout({"": [Leaf("w", "float32", (2,), 4, (Piece(0),))]})
    'a86dc92c083ea04e'
    """
    rows = [
        (x.path, x.type, x.shape, [(piece.offset, piece.box, piece.file) for piece in x.pieces])
        for group in leaves.values()
        for x in group
        if x.shape is not None
    ]
    return xxhash.xxh3_64_hexdigest(json.dumps(rows).encode())


_HEAD_OF_PART = re.compile(rb'\{"layout": "([0-9a-f]{16})", "files": (\{[^}]*\})')


def read_head_of_part(content: bytes) -> tuple[str, dict[str, int]]:
    """Read layout and shared files from the bytes of a part file, with its checksum, and no more.

    Raises:
        DamagedCheckpoint: a bit changed, or it is no part file.
    """
    if (found := _HEAD_OF_PART.match(check_content(content))) is None:
        raise DamagedCheckpoint("it is no part file of this version")
    return found.group(1).decode(), json.loads(found.group(2))


def _to_json(leaf: Leaf) -> dict[str, Any]:
    """Return a leaf as JSON; `dataclasses.asdict` takes ten times as long."""
    return {**vars(leaf), "pieces": [*map(_piece_to_json, leaf.pieces)]}


def _piece_to_json(piece: Piece) -> dict[str, Any]:
    if piece.file:
        return vars(piece)
    return {"offset": piece.offset, "box": piece.box, "checksum": piece.checksum}


_ONE_DEVICE = "none, one device"

_VERSIONS = {name: metadata.version(name) for name in LIBRARIES if name != "entracte"}


def list_environment_changes(manifest: Mapping[str, Any], mesh: str | None = None) -> list[str]:
    """List what changed since the checkpoint and may change bits: versions, devices and mesh.

    Those that a checkpoint of an older version does not have are left out.

    Args:
        manifest: of the checkpoint.
        mesh: on which the state lies now, described; None on one device.

    >>> list_environment_changes({"versions": {"jax": "0.4.1", "numpy": "1.0"},
    ...     "devices": "1024 abacus"})
    ['jax: saved with 0.4.1, now ...', 'devices: saved with 1024 abacus, now ...']
    """
    saved = {name: manifest["versions"].get(name) for name in ("jax", "jaxlib")}
    saved["devices"] = manifest.get("devices")
    saved["mesh"] = (manifest["mesh"] or _ONE_DEVICE) if "mesh" in manifest else None
    now = {**_VERSIONS, "devices": describe_devices(), "mesh": mesh or _ONE_DEVICE}
    return [
        f"{name}: saved with {before}, now {now[name]}"
        for name, before in saved.items()
        if before is not None and before != now[name]
    ]


def has_same_software(manifest: Mapping[str, Any]) -> bool:
    """Return whether the versions of the libraries are those that wrote a checkpoint."""
    return all(manifest["versions"].get(name) == now for name, now in _VERSIONS.items())


def parse_leaves(content: Mapping[str, Any]) -> dict[str, list[Leaf]]:
    """Return the leaves of every section of a manifest or a part file, as they were saved."""

    def parse_leaf(leaf: Mapping[str, Any]) -> Leaf:
        if leaf["shape"] is None:
            return Leaf(**{**leaf, "pieces": ()})
        pieces = [
            Piece(
                x["offset"],
                x["box"] and tuple(map(tuple, x["box"])),
                x["checksum"],
                x.get("file", ""),
            )
            for x in leaf["pieces"]
        ]
        return Leaf(**{**leaf, "shape": tuple(leaf["shape"]), "pieces": tuple(pieces)})

    return {name: [*map(parse_leaf, group)] for name, group in content["leaves"].items()}


def compute_digest(manifest: Mapping[str, Any]) -> int:
    """Compute a hash of the content of a checkpoint, from its checksums and values: 62 bits.

    >>> one, two = ({"leaves": {"": [{"path": "n", "value": x}]}} for x in ("0x1", "0x2"))
    >>> compute_digest(one) == compute_digest(two)
    False
    """
    content = json.dumps([manifest["leaves"], manifest.get("parts")])
    return xxhash.xxh3_64_intdigest(content.encode()) >> 2


def compute_content_checksum(manifest: Mapping[str, Any]) -> str:
    """Compute a checksum of the values in a manifest, wherever their bytes lie: 16 digits.

    >>> piece = {"offset": 0, "box": None, "checksum": "2ffb6918c12c256e"}
    >>> one, two = ({"leaves": {"": [{"path": "n", "pieces": [x]}]}}
    ...     for x in (piece, piece | {"offset": 64, "file": "process_0.1.ab-1"}))
    >>> compute_content_checksum(one) == compute_content_checksum(two)
    True
    """
    leaves = {
        name: [
            leaf | {"pieces": [(x["box"], x["checksum"]) for x in leaf["pieces"]]} for leaf in group
        ]
        for name, group in manifest["leaves"].items()
    }
    return xxhash.xxh3_64_hexdigest(json.dumps(leaves, sort_keys=True).encode())


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
    body = check_content(content)
    try:
        manifest = json.loads(body[:-2])
    except (ValueError, RecursionError) as error:
        raise DamagedCheckpoint(f"its manifest is no JSON ({type(error).__name__})") from error
    if not isinstance(manifest, dict):
        raise DamagedCheckpoint("its manifest is no JSON object")
    return manifest


def check_content(content: bytes) -> bytes:
    """Check that what `encode_manifest` wrote has its checksum, and return the JSON in it."""
    head, joint, body = content.partition(_MIDDLE)
    if not joint or head != _HEAD + xxhash.xxh3_64_hexdigest(body).encode():
        raise DamagedCheckpoint("its manifest does not have its checksum")
    return body
