"""The inputs of a network of text: tokens, and the segments that they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from models.network import PyTree

KEYS = {"tokens", "segments", "positions"}


class TextInputs(NamedTuple):
    """Tokens, integer `[batch, time]`, and optionally where each of them belongs.

    A token sees only earlier tokens of its own segment, and itself.
    """

    tokens: jax.Array
    segments: jax.Array | None = None
    """Number of the segment of each token, integer `[batch, time]`; 0 is padding."""
    positions: jax.Array | None = None
    """Positions within the segment, from 0, integer `[batch, time]`."""


def parse_text(owner: str, inputs: PyTree, longest: int | None) -> TextInputs:
    """Check the inputs of a network, or their shapes, and return them by name.

    Args:
        owner: the network, for messages.
        inputs: tokens, integer `[batch, time]`, or a dict of `tokens` and, together or not at all,
            `segments` and `positions`, all integer `[batch, time]`.
        longest: number of tokens that a row without segments may have, or None for any. Those of
            rows with segments are not limited, since only their positions are.

    Raises:
        ValueError: the inputs have another form, shape or dtype, or are too long.

    >>> parse_text("transformer", jnp.ones((2, 9), jnp.int32), 8)
    Traceback (most recent call last):
        ...
    ValueError: transformer: 9 tokens are more than the limit of 8; pass shorter texts
    """
    given = dict(inputs) if isinstance(inputs, Mapping) else {"tokens": inputs}
    if "tokens" not in given or not given.keys() <= KEYS:
        raise ValueError(
            f"{owner} takes tokens, or a dict of tokens, segments and positions; "
            f"got {', '.join(map(repr, sorted(given))) or 'an empty dict'}"
        )
    for name, array in given.items():
        _require_integers(owner, name, array)
    text = TextInputs(**given)
    shape = text.tokens.shape
    if (text.segments is None) != (text.positions is None):
        missing = "positions" if text.positions is None else "segments"
        raise ValueError(f"{owner} takes segments and positions together; {missing} are missing")
    for name, other in (("segments", text.segments), ("positions", text.positions)):
        if other is not None and other.shape != shape:
            raise ValueError(
                f"{owner}: {name} must have the shape of the tokens, {list(shape)}; "
                f"got {list(other.shape)}"
            )
    if longest is not None and text.segments is None and shape[1] > longest:
        raise ValueError(
            f"{owner}: {shape[1]} tokens are more than the limit of {longest}; pass shorter texts"
        )
    return text


def _require_integers(owner: str, name: str, array: Any) -> None:
    shape, dtype = getattr(array, "shape", None), getattr(array, "dtype", type(array).__name__)
    if shape is None or len(shape) != 2 or not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(
            f"{owner} takes integer {name} [batch, time]; got {dtype}{list(shape or ())}"
        )
