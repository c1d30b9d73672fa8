"""An exchange between processes: all give some words, all get those of everyone."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import xxhash
from jax.experimental import multihost_utils

_WORDS, _HEAD, _REASON = 256, 4, 128
"""Words of a message; of them the head (digest of the name, size, failure), and the reason."""


class FailedElsewhereError(RuntimeError):
    """Another process failed, or is at another place of its program, and this one ends with it."""


def exchange_words(what: str, words: np.ndarray, failure: Exception | None = None) -> np.ndarray:
    """Return the words of all processes, `[process, word]`; all must call it.

    Every message has one size: one compiled program serves all, and processes that are at different
    places of their programs find that out, where collectives of different sizes would abort them.

    Args:
        what: name of the exchange, the same on every process.
        words: uint32 `[word]`, as many on every process.
        failure: why this process cannot go on; it is raised here, and the reason on the others.

    Raises:
        FailedElsewhereError: another process failed, or exchanges something else.

    >>> exchange_words("numbers", np.arange(2, dtype=np.uint32))
    array([[0, 1]], dtype=uint32)
    """
    if jax.process_count() == 1:
        if failure is not None:
            raise failure
        return words[None]
    room = _WORDS - _HEAD - _REASON
    received = []
    for start in range(0, max(len(words), 1), room):
        part = words[start : start + room]
        seen = _gather(pack_message(what, part, total=len(words), failure=failure))
        _check(what, seen, failure)
        received.append(seen[:, _HEAD : _HEAD + len(part)])
    return np.concatenate(received, axis=1)


def pack_message(
    what: str, words: Any = (), *, total: int = 0, failure: Exception | None = None
) -> np.ndarray:
    """Pack a message: the digest of its name, the size of all, whether it failed; words; a text."""
    message = np.zeros(_WORDS, np.uint32)
    message[:2] = np.frombuffer(xxhash.xxh3_64_digest(what.encode()), np.uint32)
    message[2:_HEAD] = total, failure is not None
    message[_HEAD : _HEAD + len(words)] = words
    message[-_REASON:] = _encode(what if failure is None else describe_failure(failure))
    return message


def describe_failure(failure: BaseException) -> str:
    """Describe an exception in a line, with its notes.

    >>> describe_failure(ValueError("wrong\\nvalue"))
    'ValueError: wrong value'
    """
    lines = [f"{type(failure).__name__}: {failure}", *getattr(failure, "__notes__", ())]
    return "; ".join(" ".join(line.split()) for line in lines)


def _check(what: str, seen: np.ndarray, failure: Exception | None) -> None:
    """Raise if a process failed, or if the messages are of different exchanges."""
    mine = jax.process_index()
    if failure is not None:
        raise failure
    if failed := np.flatnonzero(seen[:, 3]).tolist():
        raise FailedElsewhereError(
            f"{what} failed on process {', '.join(map(str, failed))}, whose own error says why "
            f"({_decode(seen[failed[0]])}); process {mine} ends with it"
        )
    if others := np.flatnonzero((seen[:, :3] != seen[mine, :3]).any(axis=1)).tolist():
        raise FailedElsewhereError(
            f"process {mine} is at {what!r} and process {others[0]} at "
            f"{_decode(seen[others[0]])!r}: all must run the same script, with the same program, "
            "data and hooks (observers too, which run on process 0 alone)"
        )


def _encode(text: str) -> np.ndarray:
    content = text.encode()[: 4 * _REASON]
    return np.frombuffer(content.ljust(4 * _REASON, b"\0"), np.uint32)


def _decode(message: np.ndarray) -> str:
    content = np.ascontiguousarray(message[-_REASON:]).tobytes().rstrip(b"\0")
    return content.decode(errors="ignore")


def _gather(message: np.ndarray) -> np.ndarray:
    """Return the messages of all processes, `[process, word]`."""
    return np.asarray(multihost_utils.process_allgather(message))
