"""Where the pieces of all processes lie: an index that is kept while no array or box changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.checkpoints.arrays.grids import describe_holders
from trainer.checkpoints.arrays.leaves import Leaf
from trainer.checkpoints.arrays.orbax_index import build_orbax_index


@dataclass(frozen=True)
class PiecePlaces:
    """Where the pieces of a checkpoint lie; it depends on no value of an array."""

    holders: Sequence[Mapping[str, Any]]
    """Which process wrote what, for the manifest."""
    orbax_files: Mapping[str, bytes]
    """The files with which plain Orbax restores the arrays, for their folder."""


class PieceIndex:
    """The places of pieces in the checkpoints of one run, found again only where they change.

    On 1,000 processes with 300 arrays it takes seconds to read all lists of pieces and to index
    them, and every save of a run has the same.

    >>> leaf = Leaf("n", "uint8", (0,), 1)
    >>> index, read = PieceIndex(), lambda: print("read") or {"process_0": [leaf]}
    >>> one, two = index.update(["ab"], read), index.update(["ab"], read)
    read
    >>> one is two
    True
    """

    def __init__(self) -> None:
        self._layouts: Sequence[str] | None = None
        self._places = PiecePlaces([], {})

    def update(
        self, layouts: Sequence[str], read: Callable[[], Mapping[str, Sequence[Leaf]]]
    ) -> PiecePlaces:
        """Return the places of the pieces of a checkpoint.

        Args:
            layouts: a hash of paths, types, shapes and boxes of what process 0, 1, ... wrote.
            read: returns the leaves with the pieces of each process, in order, by the name of the
                file with their bytes; called only if the layouts are not those of the last call.

        Raises:
            RuntimeError: the pieces do not cover all arrays.
        """
        if self._layouts is None or [*layouts] != [*self._layouts]:
            written = read()
            _check_covered(written.values())
            self._places = PiecePlaces(
                describe_holders([*written.values()]), build_orbax_index(written)
            )
            self._layouts = layouts
        return self._places


def _check_covered(written: Any) -> None:
    """Raise RuntimeError if processes wrote less or more than every element once."""
    missing: dict[str, int] = {}
    for leaves in written:
        for leaf in leaves:
            if leaf.shape is not None:
                size = math.prod(leaf.shape) * leaf.itemsize
                found = sum(leaf.count_bytes(piece.box) for piece in leaf.pieces)
                missing[leaf.path] = missing.get(leaf.path, size) - found
    if wrong := [path for path, count in missing.items() if count]:
        raise RuntimeError(
            f"the processes did not write every element of {', '.join(wrong)} once, so that no "
            "checkpoint was published: their states differ, or they do not run the same script"
        )
