"""Read the pieces of arrays that this process needs, from the parts that processes wrote."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import jax
import numpy as np

from trainer.checkpoints import parts, publishing
from trainer.checkpoints.arrays import array_storage, host_snapshot
from trainer.checkpoints.arrays.damage import DamagedCheckpoint
from trainer.checkpoints.arrays.grids import find_holders
from trainer.checkpoints.arrays.leaves import Box, Leaf, get_box_shape, intersect_boxes
from trainer.checkpoints.arrays.piece_files import get_piece_file, select_pieces
from trainer.checkpoints.arrays.rebuild import Block
from trainer.checkpoints.storage.run_paths import RunPath


def read_blocks(
    directory: RunPath,
    number: int,
    manifest: Mapping[str, Any],
    leaves: Sequence[Leaf],
    needed: Mapping[str, Sequence[Box]],
) -> dict[str, list[Block]]:
    """Read the pieces of a checkpoint that overlap boxes of its arrays, and verify them.

    The main process's part comes first, then those that the manifest says hold something of the
    boxes, the one of this process first, which is all that it needs on the same mesh; then others.

    Args:
        directory, number, manifest: of the checkpoint.
        leaves: all that the manifest lists.
        needed: boxes by path, which do not overlap.

    Returns:
        Blocks by path, which cover the boxes.

    Raises:
        DamagedCheckpoint: a bit changed since they were written, or they do not cover the boxes.
        MemoryError: they need more memory than this machine has.
    """
    blocks: dict[str, list[Block]] = {path: [] for path in needed}
    missing = {path: sum(map(_count_elements, boxes)) for path, boxes in needed.items()}
    processes = range(len(manifest.get("parts") or ()) + 1)
    own, holders = jax.process_index(), find_holders(manifest.get("holders") or (), leaves, needed)
    try:
        folder = publishing.get_data(directory, number, manifest)
        for process in sorted(processes, key=lambda n: (n > 0, n not in holders, n != own)):
            if not any(missing.values()):
                break
            part = parts.read_part_pieces(folder, process, manifest, leaves)
            uncovered = {path: needed[path] for path in needed if missing[path]}
            for leaf, data in _read_pieces(folder, process, part, uncovered):
                for piece, content in zip(leaf.pieces, data, strict=True):
                    box = leaf.get_box(piece)
                    blocks[leaf.path].append((box, content))
                    missing[leaf.path] -= _count_shared(box, needed[leaf.path])
        if without := [path for path, count in missing.items() if count]:
            raise DamagedCheckpoint(f"its pieces do not cover {', '.join(without)}")
    except DamagedCheckpoint as damage:
        raise DamagedCheckpoint(f"checkpoint {number} in {directory}: {damage}") from damage
    return blocks


def _choose_pieces(rows: Sequence[Leaf], needed: Mapping[str, Sequence[Box]]) -> list[Leaf]:
    """Return the leaves that have a piece which overlaps a box, each with these pieces alone."""
    chosen = []
    for leaf in rows:
        if boxes := needed.get(leaf.path):
            pieces = [
                piece
                for piece in leaf.pieces
                if piece.box is None or _count_shared(piece.box, boxes)
            ]
            if pieces:
                chosen.append(replace(leaf, pieces=tuple(pieces)))
    return chosen


def _read_pieces(
    folder: RunPath, process: int, part: parts.PartPieces, needed: Mapping[str, Sequence[Box]]
) -> Iterator[tuple[Leaf, list[np.ndarray]]]:
    """Read and verify the pieces that overlap a box, file by file: uint8 [bytes] each."""
    chosen = _choose_pieces(part.leaves, needed)
    for name in sorted({piece.file for leaf in chosen for piece in leaf.pieces}):
        rows = select_pieces(chosen, name)
        size = (
            part.files[name] if name else host_snapshot.count_bytes(select_pieces(part.leaves, ""))
        )
        ranges = sorted(chain.from_iterable(map(host_snapshot.list_ranges, rows)))
        file = get_piece_file(folder, process, name)
        buffer = array_storage.load_arrays(file, size, ranges)
        host_snapshot.verify_checksums(rows, buffer)
        for leaf in rows:
            sizes = [leaf.count_bytes(piece.box) for piece in leaf.pieces]
            starts = [piece.offset for piece in leaf.pieces]
            yield leaf, [buffer[x : x + n] for x, n in zip(starts, sizes, strict=True)]


def _count_elements(box: Box) -> int:
    return math.prod(get_box_shape((), box))


def _count_shared(box: Box, boxes: Sequence[Box]) -> int:
    """Count the elements that a box shares with others, which do not overlap."""
    shared = (intersect_boxes(box, other) for other in boxes)
    return sum(_count_elements(found) for found in shared if found is not None)
