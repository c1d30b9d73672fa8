"""Prompts of different lengths as arrays, padded on the left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def pad_prompts(prompts: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    """Return `tokens`, int32 `[prompt, time]`, left-padded with 0, and `lengths`, int32 `[prompt]`.

    >>> {name: x.tolist() for name, x in pad_prompts([[7, 8], [9]]).items()}
    {'tokens': [[7, 8], [0, 9]], 'lengths': [2, 1]}
    """
    lengths = np.array([len(one) for one in prompts], np.int32)
    tokens = np.zeros((len(lengths), lengths.max()), np.int32)
    for row, one in zip(tokens, prompts, strict=True):
        row[len(row) - len(one) :] = one
    return {"tokens": tokens, "lengths": lengths}


def make_inputs(arrays: Any, rows: jax.Array) -> dict[str, jax.Array]:
    """Return prompts as inputs of a language network, `[row, time]` each, left-padded.

    `segments` is 0 on the padding and 1 on the prompt, whose `positions` count from 0.

    Args:
        arrays: with what `pad_prompts` returns.
        rows: indices of the prompts, int32 `[row]`.

    >>> inputs = make_inputs(pad_prompts([[7, 8], [9]]), jnp.array([1]))
    >>> {name: x.tolist() for name, x in inputs.items()}
    {'tokens': [[0, 9]], 'segments': [[0, 1]], 'positions': [[0, 0]]}
    """
    tokens = jnp.asarray(arrays["tokens"])[rows]
    lengths = jnp.asarray(arrays["lengths"])[rows]
    place = jnp.arange(tokens.shape[1]) - (tokens.shape[1] - lengths)[:, None]
    return {
        "tokens": tokens,
        "segments": (place >= 0).astype(jnp.int32),
        "positions": jnp.maximum(place, 0).astype(jnp.int32),
    }
