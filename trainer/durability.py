"""What outlasts a power failure: files that are replaced as a whole, and a folder's entries."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
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


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Give a path beside a file to write to, which then takes the file's place, durably.

    A reader finds the old file or the new one, whole, whatever happens; where writing fails, the
    old one stays and nothing is left beside it. The new one may be read by whoever may read files
    that this process makes, however it is written.

    Args:
        file: to replace or to make; its folder must exist.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(Path(folder, "a.txt")) as beside:
    ...         _ = beside.write_text("whole")
    ...     print(Path(folder, "a.txt").read_text(), len(os.listdir(folder)))
    whole 1
    """
    beside = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        beside.touch()
        mode = beside.stat().st_mode
        yield beside
        if beside.stat().st_mode != mode:  # safetensors makes it anew, for its owner alone
            beside.chmod(stat.S_IMODE(mode))
        with beside.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(beside, file)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync_folder(file.parent)
