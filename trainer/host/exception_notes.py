"""Notes on exceptions: where they came from; their type stays."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def annotate_errors(where: str) -> Iterator[None]:
    """Add to an exception a note about where it came from.

    >>> try:
    ...     with annotate_errors("in checking phase 'val'"):
    ...         raise ValueError("no labels")
    ... except ValueError as error:
    ...     error.__notes__
    ["in checking phase 'val'"]
    """
    try:
        yield
    except Exception as error:
        if where not in getattr(error, "__notes__", ()):
            error.add_note(where)
        raise
