"""Data that comes from the host, a superbatch at a time, the next one while this one computes."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trainer.data.feed import Batch, Check, Feed, examples_in
from trainer.state import TrainState, stream_seed

Factory = Callable[[int, int], Iterable[Batch]]
"""`(seed, epoch) -> batches`: the same batches whenever it is called with the same arguments."""


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
    """Batches from the host: any iterable that can be run through again, or a factory.

    A factory `(seed, epoch) -> batches` is asked anew in every epoch; the seed comes from the
    state's root key, so that a resumed run sees the same data. Batches are stacked to superbatches
    `[superbatch, batch, ...]`; one is transferred while the one before it computes. Every batch
    has the size of the first but the last, which training drops if it is smaller and evaluation
    counts under a mask.

    Args:
        batches: iterable of dicts of arrays `[batch, ...]`, or a factory of one.
        superbatch: steps a transfer; larger means fewer dispatches and more memory.

    Raises:
        TypeError: `batches` is an iterator, which could be run through only once.
        ValueError: `superbatch` is below 1.

    >>> def batches(seed, epoch):
    ...     random = np.random.default_rng((seed, epoch))
    ...     for _ in range(5):
    ...         yield {"inputs": random.normal(size=(4, 3)).astype(np.float32)}
    >>> Stream(batches, superbatch=2).example["inputs"].shape
    (4, 3)
    """

    batches: Iterable[Batch] | Factory
    superbatch: int = 16

    def __post_init__(self) -> None:
        if isinstance(self.batches, Iterator):
            raise TypeError(
                "batches must be an iterable that can be run through in every epoch, or a factory "
                f"(seed, epoch) -> batches; got a {type(self.batches).__name__}, which ends after "
                "one pass: pass the function that made it"
            )
        if self.superbatch < 1:
            raise ValueError(f"superbatch must be at least 1; got {self.superbatch}")

    @functools.cached_property
    def example(self) -> Batch:
        """The first batch of epoch 0, for seed 0."""
        for batch in self._epoch(0, 0):
            examples_in(batch, "the stream's first batch")
            return batch
        raise ValueError("the stream must give at least one batch; got none")

    def training(self) -> Feed:
        """Read whole batches, in the stream's own order."""
        return Feed(
            pieces=functools.partial(self._pieces, masked=False),
            example=_stacked_shapes(self.example, self.superbatch),
            rows=lambda piece, key: jnp.arange(_steps(piece)),
            batch=lambda piece, row: jax.tree.map(lambda array: array[row], piece),
            verify=lambda state, check: check(state, self.example),
        )

    def evaluation(self) -> Feed:
        """Read every example, a smaller last batch padded under a mask `[batch]`."""
        masked = (self.example, np.ones(self._size, bool))
        return Feed(
            pieces=functools.partial(self._pieces, masked=True),
            example=_stacked_shapes(masked, self.superbatch),
            rows=lambda piece, key: jnp.arange(_steps(piece)),
            batch=lambda piece, row: jax.tree.map(lambda array: array[row], piece),
            verify=lambda state, check: check(state, self.example),
        )

    @property
    def _size(self) -> int:
        return examples_in(self.example, "the stream's first batch")

    def _epoch(self, seed: int, epoch: int) -> Iterable[Batch]:
        return self.batches(seed, epoch) if callable(self.batches) else self.batches

    def _pieces(self, state: TrainState, check: Check | None, *, masked: bool) -> Iterator[Any]:
        epoch = int(state.epoch)
        batches = self._whole(self._epoch(stream_seed(state), epoch), epoch, masked)
        empty = True
        while group := list(itertools.islice(batches, self.superbatch)):
            empty = False
            piece = jax.tree.map(lambda *arrays: np.stack(arrays), *group)
            if check is not None:
                batch = piece[0] if masked else piece
                check(state, {name: _flat(array) for name, array in batch.items()})
            yield jax.device_put(piece)
        if empty:
            raise ValueError(
                f"the stream gave no whole batch in epoch {epoch}; pass a list or a factory, which "
                "can be run through in every epoch"
            )

    def _whole(self, batches: Iterable[Batch], epoch: int, masked: bool) -> Iterator[Any]:
        """Give batches of one size: a smaller last one is padded, or dropped in training."""
        short = None
        for number, batch in enumerate(batches):
            if short is not None:
                raise ValueError(
                    f"batch {number - 1} of epoch {epoch} has {short} examples and is not the "
                    f"last; all others must have {self._size}"
                )
            size = examples_in(batch, f"batch {number} of epoch {epoch}")
            self._check_like_first(batch, number, epoch)
            if size < self._size:
                short = size
                if not masked:
                    continue
            if not masked:
                yield {name: np.asarray(array) for name, array in batch.items()}
                continue
            padding = self._size - size
            yield (
                {name: _padded(np.asarray(array), padding) for name, array in batch.items()},
                np.arange(self._size) < size,
            )

    def _check_like_first(self, batch: Batch, number: int, epoch: int) -> None:
        wanted, got = _described(self.example), _described(batch)
        longer = examples_in(batch, "batch") > self._size
        if wanted != got or longer:
            raise ValueError(
                f"batch {number} of epoch {epoch} must be like the first, {wanted} with at most "
                f"{self._size} examples; got {got} with {len(next(iter(batch.values())))}"
            )


def _described(batch: Batch) -> dict[str, str]:
    """Dtype and shape of one example of each array."""
    return {
        name: f"{np.asarray(array).dtype}{list(np.shape(array)[1:])}"
        for name, array in sorted(batch.items())
    }


def _padded(array: np.ndarray, padding: int) -> np.ndarray:
    return np.concatenate([array, np.repeat(array[-1:], padding, axis=0)]) if padding else array


def _flat(array: np.ndarray) -> np.ndarray:
    """Join the axes of steps and examples."""
    return array.reshape(-1, *array.shape[2:])


def _steps(piece: Any) -> int:
    return int(jax.tree.leaves(piece)[0].shape[0])


def _stacked_shapes(batch: Any, steps: int) -> Any:
    def shape(array: Any) -> jax.ShapeDtypeStruct:
        dtype = jax.dtypes.canonicalize_dtype(np.asarray(array).dtype)
        return jax.ShapeDtypeStruct((steps, *np.shape(array)), dtype)

    return jax.tree.map(shape, batch)
