"""The lines of a file of examples: a JSON object each, with the number of the line."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from trainer.checks.arguments import describe_value
from trainer.checks.paths import to_absolute_path
from trainer.host.safe_open import open_regular


class ExampleLine(NamedTuple):
    """An object of a file."""

    where: str
    """The file and the line, for messages."""
    values: dict[str, Any]


def read_json_lines(
    path: str | os.PathLike[str], who: str, part: tuple[float, float] = (0.0, 1.0)
) -> Iterator[ExampleLine]:
    """Yield the objects of a file in UTF-8, one line at a time; blank lines are skipped.

    Args:
        path: of the file.
        who: what reads it, for messages.
        part: start and end, as shares of the objects.

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: a line is no JSON object, or the file or the part has none.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w+") as file:
    ...     _ = file.write('{"text": "a"}\\n{"text": \\n')
    ...     file.flush()
    ...     lines = read_json_lines(file.name, "data.chat")
    ...     print(next(lines).values)
    ...     next(lines)
    Traceback (most recent call last):
    ValueError: data.chat reads one JSON object per line; /tmp/..., line 2, is broken: ...
    """
    path = to_absolute_path(path, who)
    start, end = part
    if not 0 <= start < end <= 1:
        raise ValueError(f"part must be (start, end) with 0 <= start < end <= 1; got {part}")
    count = sum(1 for _ in _read_lines(path))
    if not count:
        raise ValueError(f"{who} reads one JSON object per line; {path} is empty")
    first, last = int(start * count), int(end * count)
    if first == last:
        raise ValueError(f"part {part} of {path} must have a line; the file has {count}")
    for number, line in itertools.islice(_read_lines(path), first, last):
        yield _parse(line, path, number, who)


def _read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank, with their numbers."""
    with open(open_regular(path, follow=True), "rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield number, line


def _parse(line: bytes, path: Path, number: int, who: str) -> ExampleLine:
    where, needs = f"{path}, line {number}", f"{who} reads one JSON object per line"
    try:
        values = json.loads(line.decode().rstrip())
    except (ValueError, RecursionError) as error:
        shown = line[:60].decode(errors="replace").strip()
        raise ValueError(f"{needs}; {where}, is broken: {error}; it begins {shown!r}") from error
    if not isinstance(values, dict):
        remedy = ": write each of its entries on a line of its own" if number == 1 else ""
        raise ValueError(f"{needs}; {where}, is {describe_value(values)}{remedy}")
    return ExampleLine(where, values)
