"""Conversations of a file as rows of tokens, of which the assistant's are trained on."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from trainer.checks.arguments import require_integer
from trainer.data.conversations.conversation_source import ConversationCounts, Conversations
from trainer.data.conversations.example_forms import ExampleReader
from trainer.data.conversations.example_lines import read_json_lines
from trainer.data.conversations.message_roles import ROLES, find_unknown_roles, list_roles
from trainer.data.conversations.opening_tokenizers import read_tokenizer
from trainer.data.conversations.row_packing import pack_rows
from trainer.data.conversations.segment_rows import place_segments
from trainer.data.conversations.token_encoding import cut_text, encode_texts

log = logging.getLogger("entracte")

T = TypeVar("T")


def chat(
    path: str | os.PathLike[str],
    tokenizer: Any,
    *,
    batch_size: int,
    length: int,
    template: str | os.PathLike[str] | None = None,
    train_on: str = "assistant",
    pack: bool = True,
    too_long: str = "cut",
    part: tuple[float, float] = (0.0, 1.0),
    steps_per_epoch: int | None = None,
) -> Conversations:
    """Read a file of conversations, and train on what the assistant says in them.

    Each line is a JSON object of one of these forms; other keys are ignored:

    - `{"messages": [{"role": "user", "content": "..."}, ...]}`, which the chat template writes as
      one text. It also receives other keys of the messages, and `tools` and `documents`.
    - `{"prompt": "...", "completion": "..."}`, of which the completion is trained on. If both are
      lists of messages, the template writes them, and the assistant's of the completion count.
    - `{"text": "..."}`, all of which is trained on.

    Texts that no template writes begin and end with the tokenizer's special tokens, as far as its
    files name them. A token is trained on if all of its characters are the assistant's, the tag
    that ends an answer included.

    All is encoded when the source is made. Conversations are packed into rows, each in the fullest
    that has room for it, longest first.

    Args:
        path: of the file, in UTF-8.
        tokenizer: a directory with `tokenizer.json`, `tokenizer_config.json` and perhaps
            `chat_template.jinja`, as it comes with weights; the path of a `tokenizer.json`; a
            `tokenizers.Tokenizer`, which knows neither template nor special tokens; or what
            `data.open_tokenizer` returns.
        batch_size: rows per step, of all processes together.
        length: inputs of a row; a conversation has at most one token more.
        template: the chat template, as a text or the path of a file; None: the tokenizer's.
        train_on: `assistant`, or `all` to train on every token.
        pack: whether several conversations may share a row.
        too_long: what happens to a conversation that is longer than a row: `cut` its end, or
            `drop` it.
        part: start and end, as shares of the examples: `part=(0, 0.9)` to train and
            `part=(0.9, 1)` to validate.
        steps_per_epoch: optimizer steps per epoch of training; None: an epoch is one pass.

    Returns:
        A source; `source.counts` says how many examples were cut, dropped, or have no token that
        is trained on.

    Raises:
        ImportError: `tokenizers` or `jinja2` is not installed.
        OSError: a file is missing or cannot be read.
        TypeError: the tokenizer is something else.
        ValueError: the file is empty; a line is no JSON, or has another form; a role is misspelt,
            or the template fails on a conversation, which is named by its line; a tokenizer without
            a template is given messages; no token is trained on; or a setting is out of range.

    See also: `docs/how_to/language/conversations.md`; `data.preferences`, `data.mixture`.

    >>> import json, pathlib, tempfile, tokenizers
    >>> folder = tempfile.TemporaryDirectory()
    >>> file = pathlib.Path(folder.name, "chat.jsonl")
    >>> turns = [{"role": "user", "content": "1 + 1"}, {"role": "assistant", "content": "2"}]
    >>> _ = file.write_text(json.dumps({"messages": turns}))
    >>> words = {"?": 0, "<user>": 1, "<bot>": 2, "<end>": 3, "1": 4, "+": 5, "2": 6}
    >>> tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="?"))
    >>> tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    >>> source = chat(file, tokenizer, batch_size=1, length=10, template='''
    ... {%- for m in messages %}{{ "<user> " if m.role == "user" else "<bot> " }}{{ m.content }}
    ... {{- " <end> " }}{% endfor %}{% if add_generation_prompt %}{{ "<bot> " }}{% endif %}''')
    >>> source.example["inputs"]["tokens"].tolist()
    [[1, 4, 5, 4, 3, 2, 6, 0, 0, 0]]
    >>> batch = source.example
    >>> batch["labels"][batch["mask"]].tolist()    # the answer and its end
    [6, 3]
    >>> folder.cleanup()
    """
    if train_on not in ("assistant", "all"):
        raise ValueError(f"train_on must be 'assistant' or 'all'; got {train_on!r}")
    most = require_integer("length", length, 1) + 1
    check_too_long(too_long)
    opened = read_tokenizer(tokenizer, "data.chat", template)
    reader = ExampleReader("data.chat", opened, everything=train_on == "all")
    texts = list(encode_texts(opened, read_examples(path, reader.read_chat, reader, part)))
    kept = [one for one in texts if len(one.tokens) > 1]
    if too_long == "drop":
        kept = [one for one in kept if len(one.tokens) <= most]
    shortened = [cut_text(one, most) for one in kept]
    counts = ConversationCounts(
        read=len(texts),
        cut=sum(len(one.tokens) > most for one in kept),
        dropped=len(texts) - len(kept),
        untrained=sum(not one.trained[1:].any() for one in shortened),
        tokens=sum(len(one.tokens) - 1 for one in shortened),
        trained=sum(int(one.trained[1:].sum()) for one in shortened),
        crossing=sum(one.crosses for one in kept),
        unanswered=sum(not one.trained.any() for one in texts),
    )
    longest = max(len(one.tokens) for one in texts)
    require_trained(reader.who, path, counts, length=length, longest=longest, too_long=too_long)
    lengths = np.array([len(one.tokens) - 1 for one in shortened])
    rows = pack_rows(lengths, length) if pack else [[index] for index in range(len(lengths))]
    source = Conversations(
        place_segments(shortened, rows, length),
        batch_size,
        counts=counts,
        vocabulary=opened.vocabulary,
        steps_per_epoch=steps_per_epoch,
    )
    log_counts("data.chat", path, source, length)
    return source


def read_examples(
    path: str | os.PathLike[str],
    read: Callable[[Mapping[str, Any]], T],
    reader: ExampleReader,
    part: tuple[float, float],
) -> Iterator[T]:
    """Yield what a function of a reader makes of each line, and name the line in its errors.

    A warning lists roles that are not known, in the end.

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: the file is empty, a line is no JSON object, a role is misspelt, or the function
            raises it.
    """
    unknown: dict[str, str] = {}
    for line in read_json_lines(path, reader.who, part):
        try:
            for role in find_unknown_roles(line.values, reader.tokenizer.template):
                unknown.setdefault(role, line.where)
            yield read(line.values)
        except ValueError as error:
            raise ValueError(f"{line.where}: {error}") from error
    for role, where in unknown.items():
        log.warning(
            "%s: the role %r, first in %s, is neither one of %s, nor named by the chat template; "
            "only messages of 'assistant' are trained on",
            *(reader.who, role, where, ", ".join(ROLES)),
        )


def check_too_long(too_long: str) -> None:
    """Raise ValueError unless this says what to do with examples that are too long."""
    if too_long not in ("cut", "drop"):
        raise ValueError(f"too_long must be 'cut' or 'drop'; got {too_long!r}")


def require_trained(
    who: str,
    path: str | os.PathLike[str],
    counts: ConversationCounts,
    *,
    length: int,
    longest: int,
    too_long: str,
) -> None:
    """Raise ValueError if no token is trained on, and say why.

    Args:
        who: what reads the file.
        path: of the file.
        counts: of its examples.
        length: inputs of an example at most.
        longest: tokens of the longest example.
        too_long: what happened to longer examples, `cut` or `drop`.
    """
    if counts.trained:
        return
    if counts.unanswered == counts.read:
        why = "completions are empty"
        if any(list_roles(line.values) for line in read_json_lines(path, who)):
            why = "no message with a content has the role 'assistant'"
    elif longest > length + 1:
        why = "prompts leave no room for an answer" if too_long == "cut" else "answers are too long"
        why += f": the longest example has {longest} tokens; raise length, which is {length}"
    else:
        why = "what is left has fewer than two tokens, or two answers that are the same"
    raise ValueError(
        f"{who} needs a token to train on; of {counts.read} examples of {os.fspath(path)}, "
        f"{counts.dropped} were dropped and {counts.cut} cut: {why}"
    )


def log_counts(who: str, path: str | os.PathLike[str], source: Conversations, length: int) -> None:
    """Log what became of the examples of a file."""
    counts, room = source.counts, source.size * source.rows.length
    log.info(
        "%s: %d examples of %s in %d rows, %.0f%% full; %d tokens, %d of them trained on; %d "
        "examples longer than %d tokens were cut, %d were dropped; %d have no token to train on",
        *(who, counts.read, os.fspath(path), source.size, 100 * counts.tokens / room),
        *(counts.tokens, counts.trained, counts.cut, length + 1, counts.dropped, counts.untrained),
    )
    if counts.unanswered:
        log.warning(
            "%s: %d of %d examples of %s have no answer (no message with the role 'assistant', or "
            "an empty completion), and teach nothing",
            *(who, counts.unanswered, counts.read, os.fspath(path)),
        )
    if counts.crossing:
        log.warning(
            "%s: in %d examples of %s a token holds the end of a prompt and the beginning of an "
            "answer, and is not trained on: let prompts end without a space, and answers begin "
            "with it",
            *(who, counts.crossing, os.fspath(path)),
        )
