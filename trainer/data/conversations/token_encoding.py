"""Texts with spans as tokens, with a flag for each that is trained on."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from trainer.data.conversations.assistant_spans import AnnotatedText, Span
from trainer.data.conversations.text_tokenizer import TextTokenizer

TEXTS = 1024
"""Texts that are encoded at once, on all cores."""


class EncodedText(NamedTuple):
    """The tokens of a text."""

    tokens: np.ndarray
    """int32 `[tokens]`."""
    trained: np.ndarray
    """bool `[tokens]`: whether a token is trained on, as the label of those before it."""


def encode_texts(tokenizer: TextTokenizer, texts: Iterable[AnnotatedText]) -> Iterator[EncodedText]:
    """Yield the tokens of texts.

    A token is trained on if all of its characters lie in a span. A text that no template wrote
    begins with the tokenizer's special tokens, and ends with that for the end of a text if the
    tokenizer has one, which is trained on if the characters before it are.

    >>> import tokenizers
    >>> from trainer.data.conversations.text_tokenizer import open_tokenizer
    >>> words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"to": 0, "be": 1}, "to"))
    >>> words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    >>> text = AnnotatedText("to be to", [(3, 8)], rendered=True)
    >>> next(encode_texts(open_tokenizer(words, "data.chat"), [text])).trained.tolist()
    [False, True, True]
    """
    iterator = iter(texts)
    while group := list(itertools.islice(iterator, TEXTS)):
        encoded = tokenizer.encoder.encode_batch([one.text for one in group])
        for text, one in zip(group, encoded, strict=True):
            tokens = np.array(one.ids, np.int32)
            offsets = np.array(one.offsets, np.int64).reshape(-1, 2)
            trained = _find_within(offsets, text.spans)
            if not text.rendered:
                tokens, trained = _add_ends(tokens, trained, text, tokenizer)
            yield EncodedText(tokens, trained)


def _find_within(offsets: np.ndarray, spans: Iterable[Span]) -> np.ndarray:
    """Return which tokens, of characters `[tokens, 2]`, lie within a span, bool `[tokens]`."""
    within = np.zeros(len(offsets), bool)
    for start, end in spans:
        within |= (offsets[:, 0] >= start) & (offsets[:, 1] <= end)
    return within & (offsets[:, 0] < offsets[:, 1])


def _add_ends(
    tokens: np.ndarray, trained: np.ndarray, text: AnnotatedText, tokenizer: TextTokenizer
) -> tuple[np.ndarray, np.ndarray]:
    before = np.array(tokenizer.before, np.int32)
    after = np.array([] if tokenizer.eos is None else [tokenizer.eos], np.int32)
    ends = any(end == len(text.text) for _, end in text.spans)
    flags = np.zeros(len(before), bool), trained, np.full(len(after), ends)
    return np.concatenate([before, tokens, after]), np.concatenate(flags)
