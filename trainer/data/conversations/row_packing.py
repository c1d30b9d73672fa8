"""Which segments share a row: best fit, the longest first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def pack_rows(lengths: Sequence[int] | np.ndarray, room: int) -> list[list[int]]:
    """Distribute segments over rows, each into the fullest row that has room for it.

    The longest are placed first. Equal arguments give equal rows.

    Args:
        lengths: of the segments, each from 0 to `room`.
        room: of a row.

    Returns:
        The numbers of the segments of each row, ascending; rows are ordered by their first one.

    Source: D. S. Johnson, Near-Optimal Bin Packing Algorithms, MIT, 1973: best fit decreasing.

    >>> pack_rows([3, 5, 2, 2, 4], room=8)
    [[0, 1], [2, 3, 4]]
    """
    rows: list[list[int]] = []
    by_space: list[list[int]] = [[] for _ in range(room + 1)]  # rows with this much space left
    spaces = 0  # the bit of each amount of space that some row has left
    for segment in np.argsort(-np.asarray(lengths, np.int64), kind="stable").tolist():
        length = int(lengths[segment])
        if fitting := spaces >> length << length:
            space = (fitting & -fitting).bit_length() - 1
            row = by_space[space].pop()
            if not by_space[space]:
                spaces ^= 1 << space
        else:
            space, row = room, len(rows)
            rows.append([])
        rows[row].append(segment)
        left = space - length
        by_space[left].append(row)
        spaces |= 1 << left
    return sorted(sorted(row) for row in rows)
