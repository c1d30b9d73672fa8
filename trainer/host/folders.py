"""Folders that somebody writes to."""

from __future__ import annotations

import tempfile
from pathlib import Path

from trainer.host.exception_notes import annotate_errors


def make_folder(path: Path, who: str) -> None:
    """Make a folder, and check that files can be created in it.

    Raises:
        OSError: they cannot; a note names `who` writes there.
    """
    with annotate_errors(f"{who} cannot write to the folder {str(path)!r}; give it another one"):
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
