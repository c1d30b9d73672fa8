"""Examples in tar files, as WebDataset writes them."""

from __future__ import annotations

import functools
import glob
import io
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xxhash

from trainer.checks.arguments import require_function, require_integer
from trainer.checks.paths import to_absolute_path
from trainer.data.adapters.pictures import SUFFIXES, decode_picture
from trainer.data.adapters.tar_files import TarExample, read_examples
from trainer.data.batches import Batch, iter_arrays, map_arrays
from trainer.data.streams import Stream

WHO = "data.tar_shards"

Decode = Callable[[Mapping[str, bytes]], Mapping[str, Any]]
"""`{ending: content} -> {name: array}` of one example, without an axis of examples."""

_LOADING = threading.Lock()
"""Held by `numpy.load`, whose parser fails in several threads of Python 3.11."""

Place = tuple[int, int]
"""The number of a shard in the order of a pass, and the offset in bytes of an example."""


def tar_shards(
    shards: str | Sequence[str],
    *,
    batch_size: int,
    decode: Decode | None = None,
    shuffle: int = 1000,
    superbatch: int = 8,
    steps_per_epoch: int | None = None,
) -> Stream:
    """Read examples from tar files, as WebDataset writes them: `000.jpg`, `000.cls`, `001.jpg`, ...

    Files that follow each other with the same name up to the first dot of its last part are one
    example. In every pass the shards are shuffled, and the examples within windows of `shuffle`
    that follow each other, by the run's seed and the number of the pass. With `steps_per_epoch`
    the shard, the offset of the window and the number of examples read of it are kept in the
    state, so a resumed run continues with the next example.

    Args:
        shards: a pattern, `train-*.tar`, or a list of paths; uncompressed.
        batch_size: examples per step.
        decode: `{ending: content} -> {name: array}`; None: a picture or an `npy` is `inputs`, and
            the whole number in `cls` is `labels`.
        shuffle: examples of a window, which are in memory together; 0 reads all in order.
        superbatch: steps per transfer; larger means fewer dispatches and more memory.
        steps_per_epoch: optimizer steps per epoch of training; None: an epoch is one pass.

    Raises:
        FileNotFoundError: no file has such a name.
        TypeError: `decode` is no function.
        ValueError: a size is below 1; when it is read, a file is no tar file, or an example cannot
            be decoded.

    >>> import tarfile, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with tarfile.open(f"{folder}/train-0.tar", "w") as tar:
    ...         for name in ("a.x", "a.cls", "b.x", "b.cls"):
    ...             info = tarfile.TarInfo(name)
    ...             info.size = 1
    ...             tar.addfile(info, io.BytesIO(b"7"))
    ...     def decode(parts):
    ...         return {"inputs": np.frombuffer(parts["x"], np.uint8), "labels": int(parts["cls"])}
    ...     source = tar_shards(f"{folder}/train-*.tar", batch_size=2, decode=decode, shuffle=0)
    ...     source.example["inputs"].tolist(), source.example["labels"].tolist()
    ([[55], [55]], [7, 7])
    """
    require_integer("batch_size", batch_size, 1)
    require_integer("shuffle", shuffle, 0)
    if decode is None:
        decode = decode_parts
    else:
        require_function(f"{WHO} takes decode, which", decode, "(parts) -> example")
    files = _find_shards(shards)

    def batches(seed: int, number: int) -> _ShardBatches:
        return _ShardBatches(files, decode, (batch_size, shuffle), (seed, number))

    return Stream(batches, superbatch, steps_per_epoch=steps_per_epoch)


def decode_parts(parts: Mapping[str, bytes]) -> Batch:
    """Decode the files of an example by their endings.

    Raises:
        ValueError: there is no picture and no array.

    >>> file = io.BytesIO()
    >>> np.save(file, np.ones(2))
    >>> decode_parts({"cls": b"3", "npy": file.getvalue()})
    {'labels': 3, 'inputs': array([1., 1.])}
    """
    example: Batch = {}
    for ending, content in parts.items():
        if "inputs" not in example and f".{ending.lower()}" in SUFFIXES:
            example["inputs"] = decode_picture(content, None, WHO, f"the .{ending}")
        elif "inputs" not in example and ending == "npy":
            with _LOADING:
                example["inputs"] = np.load(io.BytesIO(content))  # refuses pickles
        elif ending == "cls":
            example["labels"] = int(content)
    if "inputs" not in example:
        raise ValueError(
            f"{WHO} needs a picture or an npy in each example; got {sorted(parts)}: pass "
            "decode=, a function {ending: content} -> {name: array}"
        )
    return example


class _ShardBatches:
    """The batches of one pass, which know their place in the shards."""

    def __init__(
        self, files: Sequence[Path], decode: Decode, sizes: tuple[int, int], seeds: tuple[int, int]
    ) -> None:
        self._batch_size, self._shuffle = sizes
        order = np.arange(len(files))
        if self._shuffle:
            order = np.random.default_rng(seeds).permutation(order)
        self._files, self._decode, self._seeds = [files[i] for i in order.tolist()], decode, seeds
        self._window, self._taken = (0, 0), 0
        self._examples = self._shuffled()

    def __iter__(self) -> _ShardBatches:
        return self

    def __next__(self) -> Batch:
        examples = list(itertools.islice(self._examples, self._batch_size))
        if not examples:
            raise StopIteration
        # A function of the user's may not be ready for threads: numpy.load is not, on Python 3.11.
        run = _decoders().map if self._decode is decode_parts else map
        return _stack(examples, list(run(self._decode_one, examples)))

    def get_state(self) -> dict[str, Any]:
        """Return the place: where the window begins, and how many examples were taken of it."""
        shard, offset = self._window
        return {"shard": shard, "offset": offset, "taken": self._taken, "of": self._describe()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Begin at a place of the same shards and windows."""
        if state["of"] != (here := self._describe()):
            raise ValueError(
                f"{WHO} must resume with the original files and windows, {state['of']}; got {here}"
            )
        self._window, self._taken = (state["shard"], state["offset"]), state["taken"]

    def _describe(self) -> str:
        files = "\n".join(f"{file.name} {file.stat().st_size}" for file in self._files)
        digest = xxhash.xxh3_64_hexdigest(os.fsencode(files))
        return f"{len(self._files)} shards {digest}, shuffle={self._shuffle}"

    def _shuffled(self) -> Iterator[TarExample]:
        """Yield the examples from the place on, and move it."""
        placed = self._in_order(*self._window)
        while True:
            window = list(itertools.islice(placed, max(self._shuffle, 1)))
            if len(window) < self._taken:
                raise ValueError(
                    f"{WHO} must find the {self._taken} examples that were read from byte "
                    f"{self._window[1]} of {self._files[self._window[0]]} on; got {len(window)}: "
                    "resume with the original files"
                )
            if not window:
                return
            self._window = window[0][0]
            order = np.random.default_rng((*self._seeds, *self._window)).permutation(len(window))
            for index in order[self._taken :]:
                self._taken += 1
                yield window[index][1]
            self._taken = 0

    def _in_order(self, first: int, offset: int) -> Iterator[tuple[Place, TarExample]]:
        for shard in range(first, len(self._files)):
            for example in read_examples(self._files[shard], offset if shard == first else 0):
                yield (shard, example.offset), example

    def _decode_one(self, example: TarExample) -> Batch:
        try:
            return map_arrays(np.asarray, self._decode(example.parts))
        except Exception as error:
            error.add_note(f"{WHO} cannot decode the example {example.name}")
            raise


@functools.cache
def _decoders() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="entracte-decode")


def _stack(read: Sequence[TarExample], examples: Sequence[Batch]) -> Batch:
    """Join examples to a batch."""
    first = {name: array.shape for name, array in iter_arrays(examples[0])}
    for at, example in zip(read, examples, strict=True):
        shapes = {name: array.shape for name, array in iter_arrays(example)}
        if shapes != first:
            raise ValueError(
                f"{WHO} needs examples of one shape; {read[0].name} has {first} and {at.name} has "
                f"{shapes}: pass decode=, a function that makes them equal"
            )
    return jax.tree.map(lambda *arrays: np.stack(arrays), *examples)


def _find_shards(shards: str | Sequence[str]) -> list[Path]:
    if isinstance(shards, str):
        pattern = str(to_absolute_path(shards, WHO))
        found = [Path(name) for name in sorted(glob.glob(pattern))]
    else:
        found = [to_absolute_path(shard, WHO) for shard in shards]
    missing = [str(file) for file in found if not file.is_file()]
    if missing or not found:
        raise FileNotFoundError(f"{WHO} needs tar files; there is none at {missing or shards}")
    return found
