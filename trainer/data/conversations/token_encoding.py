"""Texts with spans as tokens, with a flag for each that is trained on."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from trainer.data.conversations.assistant_spans import AnnotatedText, Span
from trainer.data.conversations.text_tokenizer import TextTokenizer

log = logging.getLogger("entracte")

NO_END = (
    "%s names no token for the end of a text, so completions and texts end without one, and a "
    "model does not learn to stop: pass a directory whose tokenizer_config.json names eos_token"
)

TEXTS = 1024
"""Texts that are encoded at once, on all cores."""


class EncodedText(NamedTuple):
    """The tokens of a text."""

    tokens: np.ndarray
    """int32 `[tokens]`."""
    trained: np.ndarray
    """bool `[tokens]`: whether a token is trained on, as the label of those before it."""
    crosses: bool = False
    """Whether a token holds the end of a prompt and the beginning of an answer."""


def cut_text(text: EncodedText, most: int) -> EncodedText:
    """Return the first tokens of a text, at most so many."""
    return text._replace(tokens=text.tokens[:most], trained=text.trained[:most])


def encode_texts(tokenizer: TextTokenizer, texts: Iterable[AnnotatedText]) -> Iterator[EncodedText]:
    """Yield the tokens of texts.

    A token is trained on if all of its characters lie in a span. A text that no template wrote
    begins with the tokenizer's special tokens, and ends with that for the end of a text, which is
    trained on if the characters before it are. A warning says so if the tokenizer names none.

    >>> import tokenizers
    >>> from trainer.data.conversations.opening_tokenizers import read_tokenizer
    >>> words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"to": 0, "be": 1}, "to"))
    >>> words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    >>> text = AnnotatedText("to be to", [(3, 8)], rendered=True)
    >>> next(encode_texts(read_tokenizer(words, "data.chat"), [text])).trained.tolist()
    [False, True, True]
    """
    iterator, warned = iter(texts), tokenizer.eos is not None
    while group := list(itertools.islice(iterator, TEXTS)):
        encoded = tokenizer.encoder.encode_batch([one.text for one in group])
        for text, one in zip(group, encoded, strict=True):
            tokens = np.array(one.ids, np.int32)
            offsets = np.array(one.offsets, np.int64).reshape(-1, 2)
            trained, crosses = _find_within(offsets, text.spans)
            if not text.rendered:
                tokens, trained = _add_ends(tokens, trained, text, tokenizer)
                if not warned:
                    log.warning(NO_END, tokenizer.name)
                    warned = True
            yield EncodedText(tokens, trained, crosses)


def _find_within(offsets: np.ndarray, spans: Iterable[Span]) -> tuple[np.ndarray, bool]:
    """Return which tokens, of characters `[tokens, 2]`, lie within a span, bool `[tokens]`.

    Also return whether a token begins before a span and ends in it.
    """
    within, crosses = np.zeros(len(offsets), bool), False
    first, last = offsets.T
    for start, end in spans:
        within |= (first >= start) & (last <= end)
        crosses = crosses or bool(((first < start) & (last > start)).any())
    return within & (first < last), crosses


def _add_ends(
    tokens: np.ndarray, trained: np.ndarray, text: AnnotatedText, tokenizer: TextTokenizer
) -> tuple[np.ndarray, np.ndarray]:
    before = np.array(tokenizer.before, np.int32)
    after = np.array([] if tokenizer.eos is None else [tokenizer.eos], np.int32)
    ends = any(end == len(text.text) for _, end in text.spans)
    flags = np.zeros(len(before), bool), trained, np.full(len(after), ends)
    return np.concatenate([before, tokens, after]), np.concatenate(flags)
