"""The examples of a tar file: files that follow each other under one name."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_MEMBER = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")
"""A name up to the first dot of its last part, and the ending."""


class TarExample(NamedTuple):
    """An example as it lies in a tar file."""

    offset: int
    """Of its first header, in bytes."""
    name: str
    """The file and the name within it, for messages."""
    parts: dict[str, bytes]
    """What its files hold, by their ending in lower case: `{"jpg": ..., "cls": ...}`."""


def read_examples(file: Path, offset: int) -> Iterator[TarExample]:
    """Iterate over the examples of an uncompressed tar file, from an offset of one of them on.

    Folders, links and hidden files are left out.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no uncompressed tar file, or is cut off, or has no example at the offset.
    """
    last, found = "", TarExample(0, "", {})
    try:
        with file.open("rb") as opened:
            opened.seek(offset)
            with tarfile.open(fileobj=opened, mode="r:") as tar:
                for member in tar:
                    match = _MEMBER.fullmatch(member.name)
                    content = tar.extractfile(member) if member.isreg() and match else None
                    if match is None or content is None:
                        continue
                    if match[1] != last and found.parts:
                        yield found
                    if match[1] != last:
                        last, found = match[1], TarExample(member.offset, f"{file}:{match[1]}", {})
                    found.parts[match[2].lower()] = content.read()
    except tarfile.TarError as error:
        raise ValueError(
            f"{file} must be an uncompressed tar file, with an example at byte {offset}; reading "
            f"it: {error}"
        ) from error
    if found.parts:
        yield found
