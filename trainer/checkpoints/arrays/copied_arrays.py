"""Which arrays the buffer of a host copy holds, so that the next copy leaves them as they are."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import jax

from trainer.checkpoints.arrays.leaves import Leaf, Piece


class CopiedArrays:
    """The arrays of the last copy, by path, and where their bytes lie in the buffer.

    An array that a run passes on from epoch to epoch is the same object in each state, and a jax
    array never changes: its bytes, and their checksums, are those in the buffer. The arrays
    themselves are not kept alive.

    >>> import jax.numpy as jnp
    >>> base, copied = jnp.ones(3), CopiedArrays()
    >>> leaf = Leaf("base", "float32", (3,), 4, (Piece(0),))
    >>> copied.add([leaf], [base])
    >>> copied.learn_checksums([replace(leaf, pieces=(Piece(0, checksum="ab"),))])
    >>> copied.find(leaf, base), copied.find(leaf, jnp.ones(3))
    ((Piece(offset=0, box=None, checksum='ab', file=''),), None)
    """

    def __init__(self) -> None:
        self._arrays: dict[str, weakref.ref[Any]] = {}
        self._leaves: dict[str, Leaf] = {}

    def find(self, leaf: Leaf, value: Any) -> tuple[Piece, ...] | None:
        """Return the pieces of a leaf, with their checksums where known; None if it is not there.

        `leaf` says where its pieces shall lie.
        """
        array, before = self._arrays.get(leaf.path), self._leaves.get(leaf.path)
        if array is None or before is None or array() is not value:
            return None
        places = [replace(piece, checksum="") for piece in before.pieces]
        return before.pieces if places == [*leaf.pieces] else None

    def clear(self) -> None:
        """Forget all: what the buffer holds is not known."""
        self._leaves, self._arrays = {}, {}

    def add(self, leaves: Iterable[Leaf], values: Iterable[Any]) -> None:
        """Take in what a copy put into the buffer: leaves with their pieces, and their values."""
        for leaf, value in zip(leaves, values, strict=True):
            if isinstance(value, jax.Array):
                self._leaves[leaf.path], self._arrays[leaf.path] = leaf, weakref.ref(value)

    def learn_checksums(self, leaves: Iterable[Leaf]) -> None:
        """Take in the checksums of the pieces of the last copy."""
        self._leaves |= {leaf.path: leaf for leaf in leaves if leaf.path in self._arrays}
