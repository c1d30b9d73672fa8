"""Folders that somebody writes to."""

from __future__ import annotations

import tempfile
from pathlib import Path


def make_folder(path: Path, who: str) -> None:
    """Make a folder, and check that files can be created in it.

    Args:
        path: of the folder.
        who: writes there, for messages.

    Raises:
        OSError: they cannot.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        error.add_note(f"{who} cannot write to the folder {str(path)!r}; give it another one")
        raise
