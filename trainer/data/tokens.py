"""Windows of a long text as tokens, for language models."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from trainer.data.batches import Batch
from trainer.data.iteration import index_loader
from trainer.data.packing import TokenFileHeader, open_token_file
from trainer.data.source import Feed


@dataclasses.dataclass(frozen=True, eq=False)
class Tokens:
    """Windows of a file that `pack_tokens` wrote, which may be larger than memory.

    A window is `inputs` int32 `[length]` and `labels` int32 `[length]`, the token after each input.
    A window begins every `stride` tokens; the last window ends at the last token. Training visits
    all windows in every pass, shuffled, whole batches only. Evaluation visits them in order and
    hides by `mask`, bool `[batch, length]`, labels that an earlier window had, so every token but
    the first is a target exactly once.

    The file is verified when it is opened. Its checksum and the position are in the state, at
    `carry["position/train"]` for the phase `train`: a resumed run continues with the next window,
    without delay, and does not resume with another file or other windows. With `steps_per_epoch`
    an epoch is a part of a pass, or of several; for this, the order, the thread and `shard` see
    `MemoryMap`.

    `len` counts the batches of a pass, a smaller last one included, and `for batch in source`
    iterates over them in order, as evaluation does.

    Args:
        file: written by `pack_tokens`.
        batch_size: windows per step, of all processes together.
        length: number of inputs of a window.
        stride: tokens from one window to the next, at most `length`; `length` if None. With a
            smaller one each target has more context in evaluation.
        part: start and end, as shares of the file: `part=(0, 0.9)` to train and `part=(0.9, 1)` to
            validate.
        superbatch: steps per transfer; larger means fewer dispatches and more memory.
        steps_per_epoch: optimizer steps per epoch of training; None: an epoch is one pass.

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: it is no file of tokens, or damaged; the part is shorter than a window; a size
            is below 1; the part is out of range; or a batch cannot be split into the shards.

    >>> import pathlib, tempfile
    >>> from trainer import data
    >>> folder = tempfile.TemporaryDirectory()
    >>> file = pathlib.Path(folder.name, "text.tokens")
    >>> _ = data.pack_tokens([range(10)], file, vocabulary=10)
    >>> tokens = Tokens(file, batch_size=2, length=4)
    >>> tokens.size, tokens.vocabulary
    (3, 10)
    >>> tokens.example["inputs"].tolist(), tokens.example["labels"].tolist()
    ([[0, 1, 2, 3], [4, 5, 6, 7]], [[1, 2, 3, 4], [5, 6, 7, 8]])
    >>> folder.cleanup()
    """

    file: str | os.PathLike[str]
    _: dataclasses.KW_ONLY
    batch_size: int
    length: int
    stride: int | None = None
    part: tuple[float, float] = (0.0, 1.0)
    superbatch: int = 32
    steps_per_epoch: int | None = None
    _windows: np.ndarray = dataclasses.field(init=False, repr=False)
    _header: TokenFileHeader = dataclasses.field(init=False, repr=False)
    _content: str = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        start, end = self.part
        if not 0 <= start < end <= 1:
            raise ValueError(
                f"part must be (start, end) with 0 <= start < end <= 1; got {self.part}"
            )
        if self.length < 1 or not 1 <= self._stride <= self.length:
            raise ValueError(
                f"length must be at least 1, and stride from 1 to length, or tokens would be left "
                f"out; got length {self.length} and stride {self.stride}"
            )
        tokens, header = open_token_file(self.file)
        first, last = int(start * len(tokens)), int(end * len(tokens))
        tokens = tokens[first:last]
        if len(tokens) <= self.length:
            raise ValueError(
                f"length must be less than the {len(tokens)} tokens of part {self.part} of "
                f"{self.file}, since every input needs the token after it; got {self.length}"
            )
        windows = f"{first} {last} {self.length} {self._stride}"
        object.__setattr__(self, "_header", header)
        object.__setattr__(self, "_content", f"{header.checksum} {windows}")
        object.__setattr__(self, "_windows", sliding_window_view(tokens, self.length + 1))
        index_loader.check_settings(self.training_rows)

    def __len__(self) -> int:
        return -(-self.size // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return index_loader.iterate_in_order(self._rows(masked=True))

    @property
    def size(self) -> int:
        """The number of windows."""
        return -(-(len(self._windows) - 1) // self._stride) + 1

    @property
    def vocabulary(self) -> int:
        """The size of the vocabulary for which the file was packed."""
        return self._header.vocabulary

    @property
    def example(self) -> Batch:
        """The first batch, or this process's part of it."""
        return self.training_rows.example

    @property
    def training_rows(self) -> index_loader.IndexedRows:
        """The windows by index, without a mask."""
        return self._rows(masked=False)

    def training(self) -> Feed:
        """Read shuffled, whole batches only.

        Raises:
            ValueError: there are fewer windows than a batch.
        """
        return index_loader.make_training_feed(self.training_rows)

    def evaluation(self) -> Feed:
        """Read in order, with a mask `[batch]` that is false where the last batch is padded.

        Raises:
            ValueError: it has `steps_per_epoch`.
        """
        return index_loader.make_evaluation_feed(self._rows(masked=True))

    @property
    def _stride(self) -> int:
        return self.length if self.stride is None else self.stride

    def _rows(self, *, masked: bool) -> index_loader.IndexedRows:
        return index_loader.IndexedRows(
            size=self.size,
            read=self._read_masked if masked else self._read,
            content=self._content,
            batch_size=self.batch_size,
            superbatch=self.superbatch,
            steps_per_epoch=self.steps_per_epoch,
        )

    def _starts(self, indices: np.ndarray) -> np.ndarray:
        return np.minimum(indices * self._stride, len(self._windows) - 1)

    def _read(self, indices: np.ndarray) -> Batch:
        """Gather windows; one gather of bytes and two conversions are fastest."""
        windows = self._windows[self._starts(indices)]
        return {
            "inputs": windows[..., :-1].astype(np.int32),
            "labels": windows[..., 1:].astype(np.int32),
        }

    def _read_masked(self, indices: np.ndarray) -> Batch:
        """Gather windows, with a mask of the labels that no earlier window has."""
        new = self._starts(indices) - self._starts(indices - 1)
        new = np.where(indices == 0, self.length, new)[..., None]
        return {**self._read(indices), "mask": np.arange(self.length) >= self.length - new}
