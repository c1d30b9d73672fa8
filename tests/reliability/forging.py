"""Checkpoints to damage, and manifests forged by someone who can compute checksums."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import xxhash

from trainer import Checkpoints, TrainState
from trainer.checkpoints import manifest


def make(epoch=1):
    """Return a state to save, with hook state of every kind of scalar."""
    state = TrainState.create(params={"w": jnp.arange(100.0) + epoch}, rng=jax.random.key(epoch))
    hook_state = {"h": {"best": 0.5, "n": 3, "name": "a", "rate": np.float32(1), "none": None}}
    return state.replace(epoch=jnp.int32(epoch), hook_state=hook_state)


def save(run, *epochs):
    """Save states of these epochs; return the folder of the checkpoints."""
    with Checkpoints(run) as checkpoints:
        for epoch in epochs:
            checkpoints.save(make(epoch), scores={"val/loss": 0.5}, config={"seed": 0})
    return run / "checkpoints"


def restore(run, **options):
    """Restore the newest intact checkpoint."""
    with Checkpoints(run, read_only=True) as checkpoints:
        return checkpoints.restore(make(0), **options)


def read(checkpoint):
    """Read the manifest of a checkpoint."""
    return manifest.decode_manifest((checkpoint / "manifest.json").read_bytes())


def forge(checkpoint, content):
    """Replace the manifest of a checkpoint, with the right checksum."""
    (checkpoint / "manifest.json").write_bytes(manifest.encode_manifest(content))


def lay_out(checkpoint, *processes, changes=()):
    """Write `params/w` anew in pieces, with the right offsets, checksums and sizes of files.

    Args:
        checkpoint: its folder.
        processes: of each one, the pieces that it wrote: `(start, stop)`, or None for the whole.
        changes: of fields of the part of process 1, before its checksum is taken.
    """
    content = read(checkpoint)
    saved = (checkpoint / "arrays/process_0").read_bytes()
    rows = [row for group in content["leaves"].values() for row in group if row["pieces"]]
    (w,) = (row for row in rows if row["path"] == "params/w")
    buffer = bytearray()
    for row in rows:
        data = saved[row["pieces"][0]["offset"] :][
            : np.prod(row["shape"], dtype=int) * row["itemsize"]
        ]
        if row is w:
            array = data
        row["pieces"] = _append(buffer, data, processes[0] if row is w else [None])
    (checkpoint / "arrays/process_0").write_bytes(buffer)
    content["parts"] = []
    for process, pieces in enumerate(processes[1:], 1):
        buffer = bytearray()
        row = {**w, "pieces": _append(buffer, array, pieces)}
        part = {"format": 1, "epoch": content["epoch"], "process": process, "leaves": {"": [row]}}
        for change in changes:
            change(part)
        (checkpoint / f"arrays/process_{process}").write_bytes(buffer)
        written = manifest.encode_manifest(part)
        (checkpoint / f"part_{process}.json").write_bytes(written)
        content["parts"].append(xxhash.xxh3_64_hexdigest(written))
    forge(checkpoint, content)


def _append(buffer, data, boxes):
    """Append pieces of a vector of float32, or the whole of any array, and return their rows."""
    rows = []
    for box in boxes:
        piece = data if box is None else data[4 * box[0] : 4 * box[1]]
        rows.append(add_piece(buffer, piece) | {"box": None if box is None else [[*box]]})
    return rows


def add_piece(buffer, data):
    """Append bytes to the arrays of a process, and return the row of a piece that is the whole."""
    offset, padded = len(buffer), data + bytes(-len(data) % 64)
    buffer += padded
    return {"offset": offset, "box": None, "checksum": xxhash.xxh3_64_hexdigest(padded)}
