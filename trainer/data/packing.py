"""Files of tokens: texts as one long array of integers, written once and mapped into memory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash

from trainer.checks.paths import to_absolute_path
from trainer.host import safe_open
from trainer.host.atomic_files import atomic_replace

FORMAT = "entracte tokens 1"
"""The version of the format; files of another version are an error."""

HEADER = 256
"""Bytes before the first token: the header as JSON, padded with spaces, and a newline."""

BLOCK = 2**24
"""Number of tokens that are verified at once."""

LARGEST = 2**31
"""The largest vocabulary: a token is an int32 on the device."""


class TokenFileHeader(NamedTuple):
    """The header of a file of tokens."""

    dtype: str
    """uint8, uint16 or uint32, little-endian."""
    tokens: int
    """The number of tokens."""
    vocabulary: int
    """The size of the vocabulary: every token is below."""
    checksum: str
    """xxh3_64 of the tokens' bytes and of the header's other fields, 16 hexadecimal digits."""


def pack_tokens(
    texts: Iterable[Any],
    file: str | os.PathLike[str],
    *,
    vocabulary: int,
    encode: Callable[[Any], Any] | None = None,
) -> int:
    """Write the tokens of texts, one after another, into a file that `Tokens` reads.

    One text at a time is in memory. Nothing separates texts unless `encode` adds such a token. The
    file appears complete or not at all, replaces an existing one, and survives a power failure.

    Args:
        texts: to encode; without `encode`, arrays of tokens, integer `[any length]`.
        file: to write; its folder must exist.
        vocabulary: size of the vocabulary; tokens are from 0 to `vocabulary` - 1, and take 1, 2 or
            4 bytes each, as the vocabulary requires.
        encode: `text -> tokens`, integers `[any length]`.

    Returns:
        The number of tokens written.

    Raises:
        TypeError: `texts` is one text, or a text's tokens are no integers `[any length]`.
        ValueError: a token is outside the vocabulary, there is none, or the vocabulary is empty.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> file = Path(folder.name, "text.tokens")
    >>> pack_tokens(["to be ", "or not"], file, vocabulary=128, encode=lambda t: list(t.encode()))
    12
    >>> open_token_file(file)[0][:5].tobytes()
    b'to be'
    >>> folder.cleanup()
    """
    if isinstance(texts, str | bytes):
        raise TypeError("texts must be an iterable of texts; got a single text: pass [text]")
    if not 1 <= vocabulary <= LARGEST:
        raise ValueError(f"vocabulary must be from 1 to {LARGEST}; got {vocabulary}")
    file = to_absolute_path(file, "pack_tokens")
    dtype = np.min_scalar_type(vocabulary - 1).newbyteorder("<")
    hashed, count = xxhash.xxh3_64(), 0
    with atomic_replace(file) as beside, beside.open("wb") as out:
        out.write(b"\0" * HEADER)
        for number, text in enumerate(texts):
            tokens = np.asarray(text if encode is None else encode(text))
            if tokens.size:
                _check(tokens, number, vocabulary)
                content = tokens.astype(dtype).tobytes()
                hashed.update(content)
                out.write(content)
                count += len(tokens)
        if not count:
            raise ValueError("texts must have at least one token; got none")
        header = TokenFileHeader(dtype.name, count, vocabulary, "")
        header = header._replace(checksum=_finish_checksum(hashed, header))
        out.seek(0)
        line = json.dumps({"format": FORMAT, **header._asdict()}).encode()
        out.write(line.ljust(HEADER - 1) + b"\n")
    return count


def open_token_file(file: str | os.PathLike[str]) -> tuple[np.ndarray, TokenFileHeader]:
    """Map a file of tokens into memory and verify its checksum, reading it once.

    Returns:
        (tokens, unsigned `[tokens]`; header).

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: it is no file of tokens, or damaged.
    """
    file = to_absolute_path(file, "Tokens")
    header = _read_header(file)
    dtype = np.dtype(header.dtype).newbyteorder("<")
    wanted, size = HEADER + header.tokens * dtype.itemsize, file.stat().st_size
    if size != wanted:
        raise ValueError(
            f"{file} must have {wanted} bytes, for a header and {header.tokens} tokens of "
            f"{header.dtype}; it has {size}: it is damaged, pack it again"
        )
    tokens = np.memmap(file, dtype, "r", HEADER, (header.tokens,)).view(np.ndarray)
    hashed = xxhash.xxh3_64()
    for start in range(0, len(tokens), BLOCK):
        hashed.update(tokens[start : start + BLOCK].data)
    if (found := _finish_checksum(hashed, header)) != header.checksum:
        raise ValueError(
            f"{file} must have the checksum {header.checksum} of its header; it has "
            f"{found}: it is damaged, pack it again"
        )
    return tokens, header


def _check(tokens: np.ndarray, number: int, vocabulary: int) -> None:
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise TypeError(
            f"the tokens of text {number} must be integers [any length]; got "
            f"{tokens.dtype}{list(tokens.shape)}: pass encode, which makes them from a text"
        )
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= vocabulary:
        raise ValueError(
            f"tokens must be from 0 to {vocabulary - 1}, as the vocabulary has {vocabulary}; text "
            f"{number} has tokens from {low} to {high}"
        )


def _read_header(file: Path) -> TokenFileHeader:
    with open(safe_open.open_regular(file, follow=True), "rb") as content:
        start = content.read(HEADER)
    try:
        fields = json.loads(start)
        version = fields.pop("format")
        header = TokenFileHeader(**fields)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{file} must be a file of tokens, as data.pack_tokens writes; it begins with "
            f"{start[:40]!r}"
        ) from error
    if version != FORMAT:
        raise ValueError(f"{file} must have the format {FORMAT!r}; it has {version!r}")
    whole = type(header.tokens) is int and header.tokens > 0
    if header.dtype not in ("uint8", "uint16", "uint32") or not whole:
        raise ValueError(f"{file} has a damaged header, {header}: pack it again")
    return header


def _finish_checksum(hashed: xxhash.xxh3_64, header: TokenFileHeader) -> str:
    """Add the header's fields to the hash of the tokens, and return its digits."""
    hashed.update(f"{header.dtype} {header.tokens} {header.vocabulary}".encode())
    return hashed.hexdigest()
