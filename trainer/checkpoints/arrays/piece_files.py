"""The files that hold the pieces of a process: one of each checkpoint alone, others are shared.

    process_0                      written with this checkpoint
    process_0.4.5f0c-2             `process_0` of the save 4.5f0c-2, for pieces that did not change
    steady_0.7.5f0c-5              written by the save 7.5f0c-5, with pieces that had not changed

On a disk a shared file has a name in every checkpoint that refers to it, all for the same bytes
(hard links). In a bucket it lies once, below the data of the save that wrote it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from trainer.checkpoints.arrays.leaves import Leaf
from trainer.checkpoints.storage.bucket_checkpoints import SAVE
from trainer.checkpoints.storage.bucket_path import BucketPath
from trainer.checkpoints.storage.run_paths import RunPath

_SHARED = re.compile(rf"((?:process|steady)_(0|[1-9][0-9]*))\.({SAVE.pattern})")


def name_own_file(process: int) -> str:
    """Return the name of the file that a process writes for one checkpoint."""
    return f"process_{process}"


def name_shared_file(process: int, save: str, *, steady: bool = False) -> str:
    """Return the name by which checkpoints share a file that a process wrote in a save.

    >>> name_shared_file(3, "12.ab-1"), name_shared_file(3, "12.ab-1", steady=True)
    ('process_3.12.ab-1', 'steady_3.12.ab-1')
    """
    return f"{'steady' if steady else 'process'}_{process}.{save}"


def is_shared_file_of(name: str, process: int) -> bool:
    """Return whether a text is the name of a shared file that a process wrote.

    >>> is_shared_file_of("steady_3.12.ab-1", 3), is_shared_file_of("../12.ab-1", 3)
    (True, False)
    """
    found = _SHARED.fullmatch(name)
    return found is not None and found[2] == str(process)


def get_piece_file(data: RunPath, process: int, name: str) -> RunPath:
    """Return where a file of pieces lies.

    Args:
        data: the path below which the arrays of a checkpoint are.
        process: that wrote it.
        name: of a shared file; "": that of this checkpoint alone.

    >>> run = BucketPath("s3", "models", "digits")
    >>> print(get_piece_file(run / "data" / "7.ab-7", 0, "process_0.4.ab-4"))
    s3://models/digits/data/4.ab-4/arrays/process_0
    """
    if isinstance(data, BucketPath) and (found := _SHARED.fullmatch(name)):
        return data.parent / found[3] / "arrays" / found[1]
    return data / "arrays" / (name or name_own_file(process))


def select_pieces(leaves: Iterable[Leaf], name: str) -> list[Leaf]:
    """Return the leaves that have pieces in a file, each with these pieces alone."""
    chosen = []
    for leaf in leaves:
        pieces = tuple([piece for piece in leaf.pieces if piece.file == name])
        if pieces:
            chosen.append(leaf if len(pieces) == len(leaf.pieces) else replace(leaf, pieces=pieces))
    return chosen
