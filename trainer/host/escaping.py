"""Escape text from elsewhere before it is printed, so that a terminal does not obey it."""

from __future__ import annotations

import logging
import unicodedata


def escape_text(text: object) -> str:
    """Return text with control characters escaped, so that a terminal shows and does not obey it.

    >>> escape_text("loss"), escape_text("\\x1b[2Jgone\\n")
    ('loss', '\\\\x1b[2Jgone\\\\n')
    """
    text = str(text)
    if text.isprintable():  # nearly all
        return text
    return "".join(
        character if is_harmless(character) else ascii(character)[1:-1] for character in text
    )


def escape_lines(text: object) -> str:
    """Return text of several lines, such as an error, with each line escaped by `escape_text`.

    >>> escape_lines("it does not fit:\\n\\tw\\x1b[2J")
    'it does not fit:\\n\\tw\\\\x1b[2J'
    """
    text = str(text)
    if text.isprintable():
        return text
    return "\n".join("\t".join(map(escape_text, line.split("\t"))) for line in text.split("\n"))


def is_harmless(character: str) -> bool:
    """Return whether a character is no control, direction or surrogate."""
    return unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def escape_record(record: logging.LogRecord) -> bool:
    """Escape the message of a log record; a filter of a logger.

    >>> record = logging.makeLogRecord({"msg": "skipped %s", "args": ("\\x1b[2J",)})
    >>> escape_record(record), record.getMessage()
    (True, 'skipped \\\\x1b[2J')
    """
    try:
        message = record.getMessage()
    except Exception:  # the handler that prints it reports what is wrong
        return True
    if (safe := escape_lines(message)) != message:
        record.msg, record.args = safe, ()
    return True


def escape_unencodable(text: str, encoding: str | None) -> str:
    """Escape what a file of this encoding cannot hold.

    >>> escape_unencodable("caf\\u00e9", "ascii"), escape_unencodable("caf\\u00e9", None)
    ('caf\\\\xe9', 'café')
    """
    encoding = encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
