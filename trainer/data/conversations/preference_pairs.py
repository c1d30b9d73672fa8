"""Pairs of a better and a worse answer, side by side in a row."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from trainer.checks.arguments import require_integer
from trainer.data.conversations.chat import (
    check_too_long,
    log_counts,
    read_examples,
    require_trained,
)
from trainer.data.conversations.conversation_source import ConversationCounts, Conversations
from trainer.data.conversations.example_forms import ExampleReader
from trainer.data.conversations.opening_tokenizers import read_tokenizer
from trainer.data.conversations.segment_rows import place_segments
from trainer.data.conversations.token_encoding import EncodedText, cut_text, encode_texts


def preferences(
    path: str | os.PathLike[str],
    tokenizer: Any,
    *,
    batch_size: int,
    length: int,
    template: str | os.PathLike[str] | None = None,
    too_long: str = "cut",
    part: tuple[float, float] = (0.0, 1.0),
    steps_per_epoch: int | None = None,
) -> Conversations:
    """Read a file of prompts, each with an answer that was chosen and one that was rejected.

    Each line is a JSON object of one of these forms; other keys are ignored:

    - `{"prompt": ..., "chosen": ..., "rejected": ...}`, all of them texts, or all lists of
      messages, which the chat template writes.
    - `{"chosen": [...], "rejected": [...]}`, whole conversations as lists of messages; those with
      which both begin are the prompt. A `prompt` that is a text may repeat it, and is ignored.

    A row has `2 * length` inputs: segment 1, from its beginning, is the prompt with the chosen
    answer, and segment 2, from its middle, the prompt with the rejected answer. `mask` is true on
    the labels of the answers alone.

    Args:
        path, tokenizer, batch_size, template, part, steps_per_epoch: as of `data.chat`.
        length: inputs of a segment: half of a row.
        too_long: what happens to a pair with an answer that ends past `length`: `cut` the end of
            the answer, or `drop` the pair. A pair of which an answer has no token left, or of which
            both are then the same, is dropped.

    Returns:
        A source for `losses.dpo` and `losses.orpo`; `source.counts` says how many pairs were cut
        or dropped.

    Raises:
        ImportError, OSError, TypeError, ValueError: as `data.chat`.

    >>> import json, pathlib, tempfile, tokenizers
    >>> folder = tempfile.TemporaryDirectory()
    >>> file = pathlib.Path(folder.name, "pairs.jsonl")
    >>> _ = file.write_text(json.dumps({"prompt": "1 + 1 =", "chosen": " 2", "rejected": " 1"}))
    >>> words = {"?": 0, "1": 1, "+": 2, "=": 3, "2": 4}
    >>> tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="?"))
    >>> tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    >>> batch = preferences(file, tokenizer, batch_size=1, length=5).example
    >>> batch["inputs"]["tokens"].tolist(), batch["inputs"]["segments"].tolist()
    ([[1, 2, 1, 3, 0, 1, 2, 1, 3, 0]], [[1, 1, 1, 1, 0, 2, 2, 2, 2, 0]])
    >>> batch["labels"][batch["mask"]].tolist()
    [4, 1]
    >>> folder.cleanup()
    """
    most = require_integer("length", length, 1) + 1
    check_too_long(too_long)
    opened = read_tokenizer(tokenizer, "data.preferences", template)
    reader = ExampleReader("data.preferences", opened)
    pairs = read_examples(path, reader.read_pair, reader, part)
    texts = list(encode_texts(opened, (text for pair in pairs for text in pair)))
    kept, cut = [], 0
    for pair in zip(texts[::2], texts[1::2], strict=True):
        longer = any(len(one.tokens) > most for one in pair)
        short = [cut_text(one, most) for one in pair]
        if (longer and too_long == "drop") or not _differ(*short):
            continue
        cut += longer
        kept += short
    counts = ConversationCounts(
        read=len(texts) // 2,
        cut=cut,
        dropped=(len(texts) - len(kept)) // 2,
        untrained=0,
        tokens=sum(len(one.tokens) - 1 for one in kept),
        trained=sum(int(one.trained[1:].sum()) for one in kept),
        crossing=sum(a.crosses or b.crosses for a, b in zip(kept[::2], kept[1::2], strict=True)),
        unanswered=sum(
            not (a.trained.any() and b.trained.any())
            for a, b in zip(texts[::2], texts[1::2], strict=True)
        ),
    )
    longest = max(len(one.tokens) for one in texts)
    require_trained(reader.who, path, counts, length=length, longest=longest, too_long=too_long)
    pairs_of_rows = [[index, index + 1] for index in range(0, len(kept), 2)]
    source = Conversations(
        place_segments(kept, pairs_of_rows, 2 * length, width=length),
        batch_size,
        counts=counts,
        vocabulary=opened.vocabulary,
        steps_per_epoch=steps_per_epoch,
    )
    log_counts("data.preferences", path, source, length)
    return source


def _differ(chosen: EncodedText, rejected: EncodedText) -> bool:
    """Return whether both have an answer, and not the same: there is something to prefer."""
    answered = chosen.trained[1:].any() and rejected.trained[1:].any()
    return bool(answered) and not np.array_equal(chosen.tokens, rejected.tokens)
