"""Text from elsewhere as it is shown: what a terminal would obey is spelled out."""

from __future__ import annotations

import logging
import unicodedata


def escape_text(text: object) -> str:
    """Give a text that a terminal shows and does not obey: control characters are spelled out.

    >>> escape_text("loss"), escape_text("\\x1b[2Jgone\\n")
    ('loss', '\\\\x1b[2Jgone\\\\n')
    """
    text = str(text)
    if text.isprintable():  # nearly all
        return text
    return "".join(
        character if harmless(character) else ascii(character)[1:-1] for character in text
    )


def escape_lines(text: object) -> str:
    """Give a text of several lines, such as an error, of which each is `escape_text`.

    >>> escape_lines("it does not fit:\\n\\tw\\x1b[2J")
    'it does not fit:\\n\\tw\\\\x1b[2J'
    """
    text = str(text)
    if text.isprintable():
        return text
    return "\n".join("\t".join(map(escape_text, line.split("\t"))) for line in text.split("\n"))


def harmless(character: str) -> bool:
    """Say whether it is neither a control nor a direction nor a surrogate."""
    return unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def escape(record: logging.LogRecord) -> bool:
    """Be a filter of a logger that has each message `escape_lines`, whatever text is part of it.

    >>> record = logging.makeLogRecord({"msg": "skipped %s", "args": ("\\x1b[2J",)})
    >>> escape(record), record.getMessage()
    (True, 'skipped \\\\x1b[2J')
    """
    try:
        message = record.getMessage()
    except Exception:  # whoever prints it says what is wrong with it
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
