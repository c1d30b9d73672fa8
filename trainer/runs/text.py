"""Text of unknown origin: clean it, shorten it, check that it can be a name."""

from __future__ import annotations

import functools

import xxhash

from trainer.host.escaping import escape_text, is_harmless

LONGEST = 200
"""Characters of a name at most: names are keys of tables, which PostgreSQL limits to 2.7 KB."""


def clean(text: str) -> str:
    """Return a text that every database can store: without NUL and lone surrogates.

    >>> clean("val/loss"), clean("a\\0b\\ud800")
    ('val/loss', 'a\\ufffdb?')
    """
    if text.isascii() and "\0" not in text:  # nearly every text, and three times as fast
        return text
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "\ufffd")


@functools.lru_cache(4096)
def shorten_name(name: str) -> str:
    """Return a name that can be a key; a longer one is cut and gets a checksum of the whole.

    >>> shorten_name("val/loss"), len(shorten_name("x" * 5000))
    ('val/loss', 200)
    """
    name = clean(name)
    if len(name) <= LONGEST:
        return name
    checksum = xxhash.xxh3_64_hexdigest(name.encode())
    return f"{name[: LONGEST - len(checksum) - 1]}~{checksum}"


def to_file_name(name: str) -> str:
    """Return a safe file name for any name: a single path component that is not hidden.

    >>> to_file_name("digits"), to_file_name("../../etc/passwd")
    ('digits', 'etc_passwd')
    """
    return escape_text(name).replace("/", "_").replace("\\", "_").lstrip("._-") or "run"


def check_name(name: str, what: str) -> str:
    """Check the name of a run or a suite, and return it.

    Raises:
        ValueError: it is empty, too long, begins with a dash, or contains a slash or a character
            that cannot be printed.

    >>> check_name("digits-3", "a run")
    'digits-3'
    """
    printable = name == name.strip() and all(is_harmless(c) and c not in "/\\" for c in name)
    if not printable or not 0 < len(name) <= LONGEST or name.startswith("-") or name in (".", ".."):
        raise ValueError(
            f"{what} needs a name of 1 to {LONGEST} characters that can be printed, without "
            f"slashes, and that does not begin with a dash; got {escape_text(name)[:LONGEST]!r}"
        )
    return name
