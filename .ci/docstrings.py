"""Prepares docstrings for the site: an extension of griffe, which reads them."""

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^>>> .*(?:\n(?!\n).*)*", re.MULTILINE)
ARGUMENTS = re.compile(r"^    (\w+(?:, \w+)+)(: .*(?:\n {8}.*)*)", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Writes examples as fenced code, and arguments that share a line as one line each."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of an object that was read."""
        if obj.docstring:
            text = EXAMPLE.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)
            obj.docstring.value = ARGUMENTS.sub(_write_each, text)


def _write_each(match: re.Match[str]) -> str:
    return "\n".join(f"    {name}{match[2]}" for name in match[1].split(", "))
