"""Streams: batches from the host, transferred in superbatches while the last one computes."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import jax
import numpy as np

from trainer.checks.arguments import can_call_with, describe_value, require_integer
from trainer.data.batches import (
    Batch,
    count_examples,
    describe_arrays,
    map_arrays,
    require_whole_pass,
)
from trainer.data.iteration import chunks
from trainer.data.iteration.positions import Position
from trainer.data.iteration.stream_passes import Factory, PassIterator, initial_position
from trainer.data.source import Check, Feed
from trainer.state import TrainState, stream_seed


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
    """Batches from the host: an iterable that can be iterated repeatedly, or a factory.

    A factory `(seed, epoch) -> batches` is called in every epoch, counted from 0, and may return an
    iterator of any library; the seed comes from the state's root key, so a resumed run sees the
    same data if the factory shuffles by it. Batches are stacked to superbatches `[superbatch,
    batch, ...]`; one is transferred while the one before it computes. All batches have the size of
    the first, except that the last may be smaller: training drops it, evaluation pads it and hides
    the padding by a mask.

    With `steps_per_epoch` an epoch is a part of a pass, or of several, and a factory is called with
    the number of the pass, `(seed, pass)`. The next pass begins where one ends, also within an
    epoch. The position is in the state, at `carry["position/train"]` for the phase `train`, so a
    resumed run neither skips nor repeats an example. To return to it, an iterator with `get_state`
    and `set_state`, as Grain's have, is restored; a sequence is indexed; any other iterable is read
    and discarded up to the position. If a run resumes with another batch size, the position is
    converted, with a warning; this is right if the order of the examples does not depend on the
    batch size.

    `for batch in stream` iterates over epoch 0 for seed 0, and `len` counts its batches where that
    is known without reading them.

    Args:
        batches: iterable of dicts of arrays `[batch, ...]`, or of dicts of them; or a factory.
        superbatch: steps per transfer; larger means fewer dispatches and more memory.
        steps_per_epoch: optimizer steps per epoch of training; None: an epoch is one pass.

    Raises:
        TypeError: `batches` is an iterator, which could be iterated only once, something without
            batches, or a factory that does not take a seed and an epoch; or a size is no whole
            number.
        ValueError: `superbatch` or `steps_per_epoch` is below 1.

    >>> def batches(seed, epoch):
    ...     random = np.random.default_rng((seed, epoch))
    ...     for _ in range(5):
    ...         yield {"inputs": random.normal(size=(4, 3)).astype(np.float32)}
    >>> Stream(batches, superbatch=2).example["inputs"].shape
    (4, 3)
    >>> Stream(batches, steps_per_epoch=2).training().start
    {'place': array([0, 0], dtype=int32), 'batch_size': array(4, dtype=int32)}
    """

    batches: Iterable[Batch] | Factory
    superbatch: int = 16
    _: dataclasses.KW_ONLY
    steps_per_epoch: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.batches, Iterator):
            raise TypeError(
                "batches must be an iterable that can be iterated in every epoch, or a factory "
                f"(seed, epoch) -> batches; got a {type(self.batches).__name__}, which ends after "
                "one pass: pass the function that made it"
            )
        if callable(self.batches):
            if not can_call_with(self.batches, 2):
                raise TypeError(
                    "the factory of a Stream must take a seed and an epoch, by which it shuffles; "
                    f"got {describe_value(self.batches)}: write lambda seed, epoch: ..."
                )
        elif not _is_iterable(self.batches) or isinstance(self.batches, Mapping | str):
            raise TypeError(
                "batches must be a list of batches, or a factory (seed, epoch) -> batches; got "
                f"{self.batches!r:.100}: data.Arrays takes a dict of whole arrays"
            )
        require_integer("superbatch", self.superbatch, 1)
        if self.steps_per_epoch is not None:
            require_integer("steps_per_epoch", self.steps_per_epoch, 1)

    def __len__(self) -> int:
        if isinstance(batches := self._pass(0, 0), Sized):
            return len(batches)
        raise TypeError(
            f"the number of batches of a {type(batches).__name__} is known only after reading it: "
            "sum(1 for _ in source)"
        )

    def __bool__(self) -> bool:
        return True  # otherwise `if source:` would call `len`, which may raise

    def __iter__(self) -> Iterator[Batch]:
        for number, batch in enumerate(self._pass(0, 0), 1):
            what = f"batch {number} of epoch 1"
            self._check_like_first(batch, count_examples(batch, what), what)
            yield map_arrays(np.asarray, batch)

    @property
    def example(self) -> Batch:
        """The first batch of epoch 0, for seed 0."""
        return self._first[0]

    def training(self) -> Feed:
        """Read whole batches, in the stream's own order."""
        feed = self._feed(masked=False)
        if self.steps_per_epoch is None:
            return feed
        start, steps = self._first[1], self.steps_per_epoch
        return feed._replace(pieces=self._window_reader(), start=start, steps=steps)

    def evaluation(self) -> Feed:
        """Read every example, a smaller last batch padded under a mask `[batch]`.

        Raises:
            ValueError: the stream has `steps_per_epoch`.
        """
        require_whole_pass(self.steps_per_epoch)
        return self._feed(masked=True)

    def _feed(self, *, masked: bool) -> Feed:
        """Read an epoch as one pass."""
        steps = min(self.superbatch, self.steps_per_epoch or self.superbatch)
        pieces = functools.partial(self._pieces, masked=masked)
        feed = chunks.make_chunk_feed(pieces, self.example, steps, masked=masked)
        repeatable = callable(self.batches) or isinstance(self.batches, Sequence)
        return feed._replace(repeatable=repeatable)

    @functools.cached_property
    def _first(self) -> tuple[Batch, Position | None]:
        """The first batch of epoch 0, for seed 0, and the position before it if one is needed."""
        iterator = iter(self._pass(0, 0))
        for batch in iterator:
            size = count_examples(batch, "the stream's first batch")
            start = initial_position(iterator, size) if self.steps_per_epoch else None
            return map_arrays(np.asarray, batch), start
        raise ValueError("the stream must have at least one batch; got none")

    @property
    def _size(self) -> int:
        return count_examples(self.example, "the stream's first batch")

    def _pass(self, seed: int, number: int) -> Iterable[Batch]:
        if not callable(self.batches):
            return self.batches
        batches = self.batches(seed, number)
        if not _is_iterable(batches):
            raise TypeError(
                "the factory of a Stream must return an iterable of batches; called with "
                f"({seed}, {number}) it returned {batches!r:.100}: return a list, or yield each "
                "batch"
            )
        return batches

    def _pieces(
        self, state: TrainState, check: Check | None, position: None, *, masked: bool
    ) -> Iterator[tuple[Any, None]]:
        epoch = int(state.epoch)
        unchecked = self._pass(stream_seed(state), epoch)
        batches = self._whole(unchecked, f"epoch {epoch + 1}", masked=masked)
        empty = True
        while group := list(itertools.islice(batches, self.superbatch)):
            empty = False
            yield _stack_chunk(group, state, check), None
        if empty:
            raise ValueError(
                f"the stream had no whole batch in epoch {epoch + 1}; pass a list or a factory, "
                "which can be iterated in every epoch"
            )

    def _window_reader(self) -> Callable[..., Iterator[tuple[Any, Position | None]]]:
        """Build the function that reads an epoch's window and keeps its iterator for the next.

        The kept iterator only saves time: it is used if it is at the state's position.
        """
        open_passes: list[PassIterator] = []

        def pieces(
            state: TrainState, check: Check | None, position: Position
        ) -> Iterator[tuple[Any, Position | None]]:
            seed = stream_seed(state)
            passes = open_passes.pop() if open_passes else None
            if passes is None or not passes.is_at(seed, position):
                passes = PassIterator(self._pass, self._whole, self._size, seed, position)
            left = self.steps_per_epoch or 0
            while left:
                group = list(itertools.islice(passes, min(self.superbatch, left)))
                left -= len(group)
                yield _stack_chunk(group, state, check), None if left else passes.position()
            open_passes[:] = [passes]

        return pieces

    def _whole(
        self, batches: Iterable[Batch], where: str, first: int = 0, *, masked: bool = False
    ) -> Iterator[Any]:
        """Yield batches of one size: a smaller last batch is padded, or dropped in training.

        Args:
            batches: the remaining ones of an epoch or a pass.
            where: its name, for messages.
            first: the number of its batches before these.
            masked: pad, and yield pairs (batch, mask `[batch]`).
        """
        short = None
        for number, batch in enumerate(batches, first):
            if short is not None:
                raise ValueError(
                    f"batch {number} of {where} has {short} examples and is not the "
                    f"last; all others must have {self._size}"
                )
            what = f"batch {number + 1} of {where}"
            size = count_examples(batch, what)
            self._check_like_first(batch, size, what)
            if size < self._size:
                short = size
            arrays = map_arrays(np.asarray, batch)
            if masked:
                pad = functools.partial(_pad, size=self._size)
                yield map_arrays(pad, arrays), np.arange(self._size) < size
            elif size == self._size:
                yield arrays

    def _check_like_first(self, batch: Batch, size: int, what: str) -> None:
        wanted, got = describe_arrays(self.example), describe_arrays(batch)
        if wanted != got or size > self._size:
            raise ValueError(
                f"{what} must be like the first, {wanted} with at most {self._size} examples; got "
                f"{got} with {size}"
            )


def _is_iterable(batches: Any) -> bool:
    return hasattr(batches, "__iter__") or hasattr(batches, "__getitem__")


def _stack_chunk(group: Sequence[Any], state: TrainState, check: Check | None) -> Any:
    """Stack batches, or pairs of a batch and its mask, and transfer them."""
    piece = jax.tree.map(lambda *arrays: np.stack(arrays), *group)
    return chunks.transfer_chunk(piece, state, check)


def _pad(array: np.ndarray, size: int) -> np.ndarray:
    """Repeat the last example up to a number of examples."""
    if len(array) == size:
        return array
    return np.concatenate([array, np.repeat(array[-1:], size - len(array), axis=0)])
