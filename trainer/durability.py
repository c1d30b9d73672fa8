"""What outlasts a power failure: a folder's entries, once they are synced."""

from __future__ import annotations

import os
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Make durable what was made, renamed or replaced in a folder; files sync their contents.

    Raises:
        OSError: the folder is missing, or the disk fails.

    >>> sync_folder(Path.cwd())
    """
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
