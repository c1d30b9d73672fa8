"""Text from elsewhere: what may be kept of it, and what may be a name."""

from __future__ import annotations

import functools

import xxhash

from trainer.host.escaping import escape_text, harmless

LONGEST = 200
"""Characters of a name, for names are keys of tables, and PostgreSQL's may take 2.7 KB."""


def clean(text: str) -> str:
    """Give a text that every database can keep: without NUL and halves of surrogate pairs.

    >>> clean("val/loss"), clean("a\\0b\\ud800")
    ('val/loss', 'a\\ufffdb?')
    """
    if text.isascii() and "\0" not in text:  # nearly all, and a third of the time
        return text
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "\ufffd")


@functools.lru_cache(4096)
def shorten_name(name: str) -> str:
    """Give a name that can be a key: of a longer one its beginning, and a checksum of the whole.

    >>> shorten_name("val/loss"), len(shorten_name("x" * 5000))
    ('val/loss', 200)
    """
    name = clean(name)
    if len(name) <= LONGEST:
        return name
    checksum = xxhash.xxh3_64_hexdigest(name.encode())
    return f"{name[: LONGEST - len(checksum) - 1]}~{checksum}"


def file_name(name: str) -> str:
    """Give a name as that of a file, whoever chose it: of one part, and not hidden.

    >>> file_name("digits"), file_name("../../etc/passwd")
    ('digits', 'etc_passwd')
    """
    return escape_text(name).replace("/", "_").replace("\\", "_").lstrip("._-") or "run"


def check_name(name: str, what: str) -> str:
    """Give a name that is one, for a run or a suite.

    Raises:
        ValueError: it is empty, too long, begins with a dash, or holds a slash or what cannot be
            printed.

    >>> check_name("digits-3", "a run")
    'digits-3'
    """
    sound = name == name.strip() and all(harmless(c) and c not in "/\\" for c in name)
    if not sound or not 0 < len(name) <= LONGEST or name.startswith("-") or name in (".", ".."):
        raise ValueError(
            f"{what} needs a name of 1 to {LONGEST} characters that can be printed, without "
            f"slashes, and that does not begin with a dash; got {escape_text(name)[:LONGEST]!r}"
        )
    return name
