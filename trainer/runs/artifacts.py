"""The files that a run writes in its directory: replays, plots, pages, traces."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from trainer.runs.rows import Artifact

KINDS = {".gif": "replay", ".png": "plot", ".html": "report", ".json": "trace"}
"""Kind by ending, of files in the directory itself; in `replays` all are replays."""

EPOCH_PREFIX = re.compile(r"(\d{1,18})-")
"""Beginning of the name of a file that belongs to an epoch."""

_TRACE = re.compile(r"(.*[._-])?trace[._-].*|trace\.json")


def list_artifacts(directory: Path) -> dict[Artifact, int]:
    """List the files that exist, each with the time of its last change in nanoseconds.

    Paths are relative to the directory, which may be moved. Checkpoints are left out, and so are
    files that writers append to. A file named `12-0.gif` belongs to epoch 12, as
    `hooks.record_replays` names its files; others belong to the run, epoch 0.

    Args:
        directory: of the run.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Path(folder, "replays").mkdir()
    ...     for name in ("replays/12-0.gif", "history.png", "metrics.jsonl", "config.json"):
    ...         _ = Path(folder, name).write_text("some")
    ...     [(file.path, file.kind, file.epoch) for file in list_artifacts(Path(folder))]
    [('history.png', 'plot', 0), ('replays/12-0.gif', 'replay', 12)]
    """
    found = {}
    for kind, entry in _list_candidates(directory):
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:  # it was replaced meanwhile
            continue
        if stat.S_ISREG(status.st_mode):
            epoch = EPOCH_PREFIX.match(entry.name)
            path = os.path.relpath(entry.path, directory)
            made = Artifact(path, kind, int(epoch[1]) if epoch else 0, 0, status.st_size)
            found[made] = status.st_mtime_ns
    return dict(sorted(found.items()))


def to_stored_path(directory: str | os.PathLike[str], path: str | os.PathLike[str]) -> str:
    """Return a path as a store keeps it: relative in the run's directory, absolute elsewhere.

    Links in either path are resolved.

    >>> to_stored_path("/runs/maze", "/runs/maze/replays/12-0.gif")
    'replays/12-0.gif'
    >>> to_stored_path("/runs/maze", "/elsewhere/a.gif")
    '/elsewhere/a.gif'
    """
    file, real = Path(path).absolute(), Path(os.path.realpath(Path(path).parent), Path(path).name)
    for found, below in ((file, directory), (real, os.path.realpath(directory))):
        if found.is_relative_to(below):
            return os.fspath(found.relative_to(below))
    return os.fspath(file)


def _list_candidates(directory: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    if directory.is_dir():
        with os.scandir(directory) as entries:
            for entry in entries:
                ending = os.path.splitext(entry.name)[1]
                if ending in KINDS and (ending != ".json" or _TRACE.fullmatch(entry.name)):
                    yield KINDS[ending], entry
    if (directory / "replays").is_dir():
        with os.scandir(directory / "replays") as entries:
            for entry in entries:
                if EPOCH_PREFIX.match(entry.name) and entry.name.endswith((".gif", ".json")):
                    yield "replay", entry
