"""Which pieces of a state did not change since the last checkpoint, and need not be written again.

A checkpoint refers to the file that holds them. A file is shared while at least half of it is in
use, so that what no checkpoint needs takes no more room than what some do. Unchanged pieces that
lie in another file are written once more, together, into a file that the next checkpoints share.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import NamedTuple

from trainer.checkpoints.arrays.host_snapshot import count_bytes, list_ranges
from trainer.checkpoints.arrays.leaves import Box, Leaf, Piece, align
from trainer.checkpoints.arrays.piece_files import get_piece_file, name_shared_file
from trainer.checkpoints.storage.run_paths import RunPath

SMALLEST = 2**16
"""Bytes from which a piece is referred to: fewer are written as fast as they are looked up."""

_Key = tuple[str, str, tuple[int, ...] | None, Box | None]
"""Path, type and shape of an array, and the box of a piece of it."""


@dataclass(frozen=True)
class EarlierPieces:
    """What a process wrote or referred to in a checkpoint, for its next one to refer to.

    Without arguments nothing: the next checkpoint is written whole.
    """

    places: Mapping[_Key, Piece] = field(default_factory=dict)
    """Where the pieces that are large enough lie."""
    own: str = ""
    """The name by which the next checkpoint refers to the file that was of this one alone."""
    files: Mapping[str, tuple[RunPath, int]] = field(default_factory=dict)
    """Path and size of their files, by the names that the next checkpoint gives them."""


def list_earlier_pieces(
    data: RunPath, process: int, save: str, leaves: Sequence[Leaf], files: Mapping[str, int]
) -> EarlierPieces:
    """List what a process has of a checkpoint, for its next one.

    Args:
        data: the path below which the arrays of the checkpoint are.
        process: that wrote the pieces.
        save: the name of the save that wrote the checkpoint.
        leaves: with the pieces of the process.
        files: the sizes of the files that they lie in; "": of that of this checkpoint alone.
    """
    own = name_shared_file(process, save)
    places = {
        _get_key(leaf, piece): piece
        for leaf in leaves
        for piece in leaf.pieces
        if leaf.count_bytes(piece.box) >= SMALLEST
    }
    found = {
        name or own: (get_piece_file(data, process, name), size) for name, size in files.items()
    }
    return EarlierPieces(places, own, found)


class PiecePlan(NamedTuple):
    """What is written of the pieces of a process, and where."""

    leaves: Mapping[str, Sequence[Leaf]]
    """Of every section, with the places of the pieces in their files."""
    ranges: Mapping[str, Sequence[tuple[int, int]]]
    """The ranges of the buffer that are written to each file, in order; "": that of this checkpoint
    alone, which is always there."""
    files: Mapping[str, int]
    """The sizes of the shared files."""

    def count_own(self) -> int:
        """Count the bytes of the file of this checkpoint alone."""
        return sum(stop - start for start, stop in self.ranges[""])


def plan_pieces(
    leaves: Mapping[str, Sequence[Leaf]],
    earlier: EarlierPieces,
    steady: str,
    share: Callable[[str], bool],
) -> PiecePlan:
    """Plan which pieces are written to which file, and which are referred to where they lie.

    Args:
        leaves: of every section, with checksums and the places of the pieces in the buffer.
        earlier: what the last checkpoint has of this process.
        steady: the name of a new shared file, for pieces that did not change.
        share: makes a file of `earlier` one of this checkpoint, too, and returns whether it could;
            called once for each file of which at least half did not change.
    """
    if not (unchanged := _find_unchanged(leaves, earlier)):
        return PiecePlan(leaves, {"": [(0, count_bytes(chain.from_iterable(leaves.values())))]}, {})
    used: Counter[str] = Counter()
    for leaf in chain.from_iterable(leaves.values()):
        for piece in leaf.pieces:
            if (before := unchanged.get(_get_key(leaf, piece))) is not None:
                used[before.file or earlier.own] += align(leaf.count_bytes(piece.box))
    kept = {x: earlier.files[x][1] for x in used if 2 * used[x] >= earlier.files[x][1] and share(x)}
    ranges: dict[str, list[tuple[int, int]]] = {"": []}
    ends: Counter[str] = Counter()

    def place(leaf: Leaf, piece: Piece, span: tuple[int, int]) -> Piece:
        before = unchanged.get(_get_key(leaf, piece))
        if before is not None and (name := before.file or earlier.own) in kept:
            return before if before.file else replace(before, file=name)
        file = "" if before is None else steady
        ranges.setdefault(file, []).append(span)
        ends[file] += span[1] - span[0]
        return Piece(ends[file] - span[1] + span[0], piece.box, piece.checksum, file)

    def place_all(leaf: Leaf) -> Leaf:
        placed = map(functools.partial(place, leaf), leaf.pieces, list_ranges(leaf))
        return replace(leaf, pieces=tuple(placed)) if leaf.pieces else leaf

    placed = {name: [place_all(leaf) for leaf in group] for name, group in leaves.items()}
    files = kept | {name: ends[name] for name in ranges if name}
    return PiecePlan(placed, ranges, files)


def _find_unchanged(
    leaves: Mapping[str, Sequence[Leaf]], earlier: EarlierPieces
) -> dict[_Key, Piece]:
    """Find the pieces that are those of the last checkpoint, bit for bit, and where these lie."""
    found = {}
    for leaf in chain.from_iterable(leaves.values()) if earlier.places else ():
        for piece in leaf.pieces:
            key = _get_key(leaf, piece)
            before = earlier.places.get(key)
            if before is not None and before.checksum == piece.checksum:
                found[key] = before
    return found


def _get_key(leaf: Leaf, piece: Piece) -> _Key:
    return leaf.path, leaf.type, leaf.shape, piece.box
