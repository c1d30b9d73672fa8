"""Rows of segments: texts side by side that do not see each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import xxhash

from trainer.data.batches import Batch
from trainer.data.conversations.token_encoding import EncodedText


@dataclasses.dataclass(frozen=True, eq=False)
class SegmentRows:
    """Encoded texts and their places in rows, in less memory than the rows themselves.

    A text of n tokens is a segment of n - 1 inputs, with the n - 1 labels after them.
    """

    tokens: np.ndarray
    """int32 `[tokens]`, of all texts, one after another."""
    trained: np.ndarray
    """bool `[tokens]`."""
    starts: np.ndarray
    """int64 `[texts + 1]`: where a text begins among the tokens."""
    segments: np.ndarray
    """int64 `[texts]`: the texts in the order of the rows."""
    offsets: np.ndarray
    """int64 `[texts]`: where each of these begins in its row."""
    bounds: np.ndarray
    """int64 `[rows + 1]`: which of these belong to a row."""
    length: int
    """Inputs of a row."""

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def read(self, indices: np.ndarray) -> Batch:
        """Return rows, `[*indices, length]` each, with zeros where no segment is.

        Returns:
            `inputs`: `tokens`, `segments` (from 1 in each row) and `positions` (from 0 in each
            segment), int32; `labels` int32; `mask` bool, true where a label is trained on.
        """
        flat = np.asarray(indices).ravel()
        counts = self.bounds[flat + 1] - self.bounds[flat]
        numbers = _count_up(counts)
        places = np.repeat(self.bounds[flat], counts) + numbers
        texts = self.segments[places]
        sizes = self.starts[texts + 1] - self.starts[texts] - 1
        positions = _count_up(sizes)
        read = np.repeat(self.starts[texts], sizes) + positions
        begin = np.repeat(np.arange(len(flat)) * self.length, counts) + self.offsets[places]
        write = np.repeat(begin, sizes) + positions

        def place(values: np.ndarray, dtype: type) -> np.ndarray:
            rows: np.ndarray = np.zeros(len(flat) * self.length, dtype)
            rows[write] = values
            return rows.reshape(*np.shape(indices), self.length)

        return {
            "inputs": {
                "tokens": place(self.tokens[read], np.int32),
                "segments": place(np.repeat(numbers + 1, sizes), np.int32),
                "positions": place(positions, np.int32),
            },
            "labels": place(self.tokens[read + 1], np.int32),
            "mask": place(self.trained[read + 1], np.bool_),
        }

    def find_largest_token(self) -> tuple[int, int]:
        """Return the largest token, and a row that has it."""
        place = int(self.tokens.argmax())
        text = int(np.searchsorted(self.starts, place, side="right")) - 1
        return int(self.tokens[place]), self._find_row(text)

    def find_longest_text(self) -> int:
        """Return a row that has the longest text."""
        return self._find_row(int(np.diff(self.starts).argmax()))

    def _find_row(self, text: int) -> int:
        place = np.flatnonzero(self.segments == text)[0]
        return int(np.searchsorted(self.bounds, place, side="right")) - 1

    def describe(self) -> str:
        """Return a text that identifies the rows, by a hash of all that they hold."""
        hashed = xxhash.xxh3_128()
        for array in (*self._arrays(), np.array(self.length)):
            hashed.update(np.ascontiguousarray(array).tobytes())
        return f"{len(self)} rows {hashed.hexdigest()}"

    def _arrays(self) -> tuple[np.ndarray, ...]:
        texts = self.tokens, self.trained, self.starts
        return *texts, self.segments, self.offsets, self.bounds


def place_segments(
    texts: Sequence[EncodedText], rows: Sequence[Sequence[int]], length: int, *, width: int = 0
) -> SegmentRows:
    """Place texts in rows, one after another.

    Args:
        texts: of at least two tokens each.
        rows: the numbers of the texts in each row.
        length: inputs of a row.
        width: if given, segments begin at its multiples.

    >>> texts = [EncodedText(np.arange(n), np.ones(n, bool)) for n in (3, 2)]
    >>> batch = place_segments(texts, [[0, 1]], length=4).read(np.array([0]))
    >>> batch["inputs"]["segments"].tolist(), batch["inputs"]["positions"].tolist()
    ([[1, 1, 2, 0]], [[0, 1, 0, 0]])
    >>> batch["labels"].tolist(), batch["mask"].tolist()
    ([[1, 2, 1, 0]], [[True, True, True, False]])
    """
    sizes = np.array([len(one.tokens) - 1 for one in texts], np.int64)
    segments = np.concatenate([np.asarray(row, np.int64) for row in rows])
    counts = np.array([len(row) for row in rows], np.int64)
    bounds = np.concatenate([[0], np.cumsum(counts)])
    if width:
        offsets = _count_up(counts) * width
    else:
        ends = np.cumsum(sizes[segments])
        starts = ends - sizes[segments]
        offsets = starts - np.repeat(starts[bounds[:-1]], counts)
    return SegmentRows(
        tokens=np.concatenate([one.tokens for one in texts]),
        trained=np.concatenate([one.trained for one in texts]),
        starts=np.concatenate([[0], np.cumsum(sizes + 1)]),
        segments=segments,
        offsets=offsets,
        bounds=bounds,
        length=length,
    )


def _count_up(counts: np.ndarray) -> np.ndarray:
    """Return 0, 1, ... up to each count, one after another.

    >>> _count_up(np.array([2, 0, 3])).tolist()
    [0, 1, 0, 1, 2]
    """
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)
