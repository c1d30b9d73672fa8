"""The source that reads rows of encoded conversations."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from trainer.data.batches import Batch, describe_arrays, map_arrays
from trainer.data.conversations.segment_rows import SegmentRows
from trainer.data.iteration import index_loader
from trainer.data.source import Check, Feed
from trainer.state import TrainState


class ConversationCounts(NamedTuple):
    """What became of the examples of a file."""

    read: int
    """Examples of the part of the file."""
    cut: int
    """Examples that were longer than a row, and lost what is past its end."""
    dropped: int
    """Examples that are not in the rows: too long, too short, without an answer that fits, or two
    answers that are the same."""
    untrained: int
    """Examples in the rows of which no token is trained on."""
    tokens: int
    """Inputs of all rows, without padding."""
    trained: int
    """Tokens that are trained on."""
    crossing: int
    """Examples with a token that holds the end of a prompt and the beginning of an answer. It is
    not trained on: a prompt should end without a space, and the answer begin with it."""
    unanswered: int
    """Examples without an answer: with no message of the assistant, or an empty completion."""


@dataclasses.dataclass(frozen=True, eq=False)
class Conversations:
    """Conversations in rows, made by `data.chat` or `data.preferences`.

    A batch has `inputs`: `tokens`, `segments` and `positions`; `labels`, the token after each; and
    `mask`, true where a label is trained on; each `[batch, length]`, int32 and bool. Segment 0 is
    padding; the others, from 1, must not see each other, and positions count from 0 in each.

    Training visits all rows in every pass, shuffled, whole batches only; evaluation reads them in
    order. The position is in the state, with a hash of all tokens, masks and rows: a resumed run
    continues with the next row, and does not resume with other data. For this, for
    `steps_per_epoch`, the order, the thread and several processes see `MemoryMap`.

    `len` counts the batches of a pass, a smaller last one included, and `for batch in source`
    iterates over them in order.
    """

    rows: SegmentRows = dataclasses.field(repr=False)
    batch_size: int
    """Rows per step, of all processes together."""
    _: dataclasses.KW_ONLY
    counts: ConversationCounts
    vocabulary: int
    """One more than the largest token of the tokenizer."""
    arrays: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """Further arrays of a batch by name, `[rows, ...]`, such as what was computed of the rows;
    their values are not part of the hash."""
    superbatch: int = 16
    """Steps per transfer."""
    steps_per_epoch: int | None = None
    """Optimizer steps per epoch of training; None: an epoch is one pass."""
    _content: str = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name, array in self.arrays.items():
            if len(array) != self.size:
                raise ValueError(
                    f"{name} must have an entry for each of {self.size} rows; got {len(array)}"
                )
        # Without the values: what is computed of the rows differs in rounding on other devices.
        further = describe_arrays(self.arrays)
        object.__setattr__(self, "_content", f"{self.rows.describe()} {further}")
        index_loader.check_settings(self.training_rows)

    def __len__(self) -> int:
        return -(-self.size // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return index_loader.iterate_in_order(self.training_rows)

    @property
    def size(self) -> int:
        """The number of rows."""
        return len(self.rows)

    @property
    def example(self) -> Batch:
        """The first batch."""
        return self.training_rows.example

    @property
    def training_rows(self) -> index_loader.IndexedRows:
        """The rows by index."""
        return index_loader.IndexedRows(
            size=self.size,
            read=self._read,
            content=self._content,
            batch_size=self.batch_size,
            superbatch=self.superbatch,
            steps_per_epoch=self.steps_per_epoch,
        )

    def training(self) -> Feed:
        """Read shuffled, whole batches only.

        Raises:
            ValueError: there are fewer rows than a batch.
        """
        feed = index_loader.make_training_feed(self.training_rows)
        return feed._replace(verify=self.verify)

    def evaluation(self) -> Feed:
        """Read in order, with a mask `[batch]` that is false where the last batch is padded.

        Raises:
            ValueError: it has `steps_per_epoch`.
        """
        feed = index_loader.make_evaluation_feed(self.training_rows)
        return feed._replace(verify=self.verify)

    def verify(self, state: TrainState, check: Check) -> None:
        """Check the form of a row, the longest text, and the row with the largest token.

        Raises:
            ValueError: they do not suit the task.
        """
        longest = self._read(np.array([self.rows.find_longest_text()]))
        form = map_arrays(np.zeros_like, longest)  # without tokens, which are checked below
        form["inputs"]["positions"] = longest["inputs"]["positions"]
        check(state, form)
        token, row = self.rows.find_largest_token()
        try:
            check(state, self._read(np.array([row])))
        except ValueError as error:
            error.add_note(
                f"the largest token of the conversations is {token}, and their tokenizer has "
                f"{self.vocabulary}: the network needs a vocabulary of as many"
            )
            raise

    def _read(self, indices: np.ndarray) -> Batch:
        more = {name: array[indices] for name, array in self.arrays.items()}
        return {**self.rows.read(indices), **more}
