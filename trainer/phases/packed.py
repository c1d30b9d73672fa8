"""Numbers of any dtype packed into one uint32 array, so that one transfer reads them all."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from trainer.state import PyTree


def get_shapes(tree: PyTree) -> PyTree:
    """Return the shapes and dtypes of a tree's arrays, without their placement."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def pack(tree: PyTree) -> jax.Array:
    """Pack numbers of any dtype into one uint32 array, so that one transfer reads them all.

    Ten scalars read one by one, or as a dict, cost up to five times one packed array.
    """
    words = [_to_words(leaf).ravel() for leaf in jax.tree.leaves(tree)]
    runs = itertools.groupby(words, key=lambda leaf: leaf.size == 1)
    parts = [part for single, run in runs for part in (_rows(list(run)) if single else run)]
    return jnp.concatenate(parts) if parts else jnp.zeros((0,), jnp.uint32)


def _rows(words: list[jax.Array]) -> Iterator[jax.Array]:
    """Join words `[1]` to rows of up to 64, each by a tree of selects over the bits of the place.

    XLA fuses a row into one kernel, and a tree of selects compiles as fast as the words alone. A
    concatenation takes a kernel for each word, and half a minute to compile 2,000.
    """
    for first in range(0, len(words), 64):
        size = min(64, len(words) - first)
        places = lax.iota(jnp.int32, size)
        level = [lax.broadcast_in_dim(w, (size,), (0,)) for w in words[first : first + size]]
        while len(level) > 1:
            odd = lax.eq(places & 1, jnp.ones_like(places))
            pairs = itertools.zip_longest(level[::2], level[1::2])
            level = [even if one is None else lax.select(odd, one, even) for even, one in pairs]
            places = places >> 1
        yield level[0]


def _carrier(dtype: Any) -> Any:
    """Return the 32 or 64 bit dtype that holds every value of this one."""
    if jnp.dtype(dtype).itemsize >= 4:
        return jnp.dtype(dtype)
    return jnp.dtype(jnp.float32 if jnp.issubdtype(dtype, jnp.floating) else jnp.int32)


def _to_words(leaf: jax.Array) -> jax.Array:
    leaf = jnp.asarray(leaf)
    leaf = leaf.astype(_carrier(leaf.dtype))
    if leaf.dtype.itemsize == 4:
        return lax.bitcast_convert_type(leaf, jnp.uint32)
    # Split by hand: XLA on CPU (jax 0.10.2) crashes where it fuses a float64 sum with its bitcast
    # to uint32.
    whole = lax.bitcast_convert_type(leaf, jnp.uint64)
    return jnp.stack([whole, whole >> 32], axis=-1).astype(jnp.uint32)


@dataclasses.dataclass(frozen=True)
class PackedLayout:
    """The places of numbers in a packed array.

    >>> shapes = jax.eval_shape(lambda: {"loss": jnp.zeros(3), "hits": jnp.zeros((), jnp.int32)})
    >>> layout = PackedLayout.from_shapes(shapes)
    >>> layout.unpack(np.asarray(pack({"loss": jnp.arange(3.0), "hits": jnp.int32(2**24 + 1)})))
    {'hits': np.int32(16777217), 'loss': array([0., 1., 2.], dtype=float32)}
    """

    structure: Any
    dtypes: tuple[Any, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def from_shapes(cls, shapes: PyTree) -> PackedLayout:
        """Return the layout of a tree of arrays, or of their shapes and dtypes."""
        leaves, structure = jax.tree.flatten(shapes)
        return cls(
            structure,
            tuple(_carrier(leaf.dtype) for leaf in leaves),
            tuple(leaf.shape for leaf in leaves),
        )

    @property
    def words(self) -> int:
        """Length of the packed array, in uint32 words."""
        return self._places[-1][0].stop if self._places else 0

    @functools.cached_property
    def _places(self) -> list[tuple[slice, Any, tuple[int, ...]]]:
        """(words, dtype, shape) of each leaf; computed once, read in every epoch."""
        places, start = [], 0
        for dtype, shape in zip(self.dtypes, self.shapes, strict=True):
            end = start + math.prod(shape) * dtype.itemsize // 4
            places.append((slice(start, end), dtype, shape))
            start = end
        return places

    @functools.cached_property
    def _runs(self) -> list[tuple[slice, Any, tuple[int, ...] | None]]:
        """The places, with scalars of a dtype that follow each other as one, of shape None."""
        runs: list[tuple[slice, Any, tuple[int, ...] | None]] = []
        for place, dtype, shape in self._places:
            if shape:
                runs.append((place, dtype, shape))
            elif runs and runs[-1][1:] == (dtype, None):
                runs[-1] = (slice(runs[-1][0].start, place.stop), dtype, None)
            else:
                runs.append((place, dtype, None))
        return runs

    def unpack(self, words: np.ndarray, *, rows: bool = False) -> PyTree:
        """Return the numbers as numpy views, and scalars as numpy's.

        Args:
            words: uint32 `[words]`; with `rows`, `[steps, words]`, one row per step.
            rows: whether every leaf has a leading axis of steps.
        """
        if rows:
            leaves = [
                np.ascontiguousarray(words[:, place]).view(dtype).reshape(len(words), *shape)
                for place, dtype, shape in self._places
            ]
        else:
            leaves = []
            for place, dtype, shape in self._runs:
                numbers = words[place].view(dtype)
                # A view of each scalar takes 1 us, where one of many takes 0.05 us a scalar.
                leaves.extend(numbers if shape is None else [numbers.reshape(shape)])
        return jax.tree.unflatten(self.structure, leaves)
