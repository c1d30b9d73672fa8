"""Which tokens a token sees."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Visibility(NamedTuple):
    """Which keys each query sees: earlier ones and its own, and only those of its segment.

    The default is that of a text without segments, whose queries and keys are the same tokens.
    """

    start: jax.Array | None = None
    """() integer, the number of keys before the first query; None where none is before it."""
    query_segments: jax.Array | None = None
    """Number of the segment of each query, integer `[batch, time]`; None for one segment."""
    key_segments: jax.Array | None = None
    """Those of the keys, integer `[batch, positions]`."""
    query_positions: jax.Array | None = None
    """Position of each query in its segment, integer `[batch, time]`; None for the order."""
    key_positions: jax.Array | None = None
    """Those of the keys, integer `[batch, positions]`."""

    def compute_mask(
        self, queries: tuple[int, int], keys: int, window: jax.Array | int | None = None
    ) -> jax.Array:
        """Compute whether some queries see the first keys.

        Args:
            queries: the first, and the one after the last.
            keys: their number.
            window: number of tokens that each sees, itself included; None for all earlier ones.

        Returns:
            bool `[batch or 1, queries, keys]`.

        >>> Visibility().compute_mask((1, 3), 3).astype(int).tolist()
        [[[1, 1, 0], [1, 1, 1]]]
        >>> Visibility().compute_mask((1, 3), 3, window=2).astype(int).tolist()
        [[[1, 1, 0], [0, 1, 1]]]
        >>> segments = jnp.array([[1, 1, 2]])
        >>> Visibility(None, segments, segments).compute_mask((1, 3), 3).astype(int).tolist()
        [[[1, 1, 0], [0, 0, 1]]]
        """
        first, last = queries
        slots = jnp.arange(first, last) + (0 if self.start is None else self.start)
        distances = (slots[:, None] - jnp.arange(keys)[None])[None]
        mask = distances >= 0
        if self.query_segments is not None and self.key_segments is not None:
            same = self.query_segments[:, first:last, None] == self.key_segments[:, None, :keys]
            mask = mask & same
        if window is None:
            return mask
        if self.query_positions is not None and self.key_positions is not None:
            asking = self.query_positions[:, first:last, None]
            distances = asking - self.key_positions[:, None, :keys]
        return mask & (distances < window)
