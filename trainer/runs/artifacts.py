"""The files that a run leaves in its directory: replays, plots, pages, traces."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from trainer.runs.rows import Artifact

KINDS = {".gif": "replay", ".png": "plot", ".html": "report", ".json": "trace"}
"""Ending to kind, of files in the directory itself; in `replays` all are replays."""

OF_EPOCH = re.compile(r"(\d{1,18})-")
"""How the name of a file begins that is of an epoch."""

_TRACE = re.compile(r"(.*[._-])?trace[._-].*|trace\.json")


def list_artifacts(directory: Path) -> dict[Artifact, int]:
    """List what is there, each with the time at which it was last changed, in nanoseconds.

    Paths are relative to the directory, which may be moved. Checkpoints are no such files, nor is
    what writers append to. A file named `12-0.gif` is of epoch 12, as `hooks.record_replays` names
    its own; others are of the run, epoch 0.

    Args:
        directory: of the run.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Path(folder, "replays").mkdir()
    ...     for name in ("replays/12-0.gif", "history.png", "metrics.jsonl", "config.json"):
    ...         _ = Path(folder, name).write_text("some")
    ...     [(file.path, file.kind, file.epoch,
    ...     file.bytes) for file in list_artifacts(Path(folder))]
    [('history.png', 'plot', 0, 4), ('replays/12-0.gif', 'replay', 12, 4)]
    """
    found = {}
    for kind, entry in _named(directory):
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:  # it was replaced just now
            continue
        if stat.S_ISREG(status.st_mode):
            epoch = OF_EPOCH.match(entry.name)
            path = os.path.relpath(entry.path, directory)
            made = Artifact(path, kind, int(epoch[1]) if epoch else 0, 0, status.st_size)
            found[made] = status.st_mtime_ns
    return dict(sorted(found.items()))


def within(directory: str | os.PathLike[str], path: str | os.PathLike[str]) -> str:
    """Give a path as a store keeps it: relative in the run's directory, absolute elsewhere.

    However it leads there: what links the path goes through is no matter.

    >>> within("/runs/maze", "/runs/maze/replays/12-0.gif"), within("/runs/maze", "/else/a.gif")
    ('replays/12-0.gif', '/else/a.gif')
    """
    file, real = Path(path).absolute(), Path(os.path.realpath(Path(path).parent), Path(path).name)
    for found, below in ((file, directory), (real, os.path.realpath(directory))):
        if found.is_relative_to(below):
            return os.fspath(found.relative_to(below))
    return os.fspath(file)


def _named(directory: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    if directory.is_dir():
        with os.scandir(directory) as entries:
            for entry in entries:
                ending = os.path.splitext(entry.name)[1]
                if ending in KINDS and (ending != ".json" or _TRACE.fullmatch(entry.name)):
                    yield KINDS[ending], entry
    if (directory / "replays").is_dir():
        with os.scandir(directory / "replays") as entries:
            for entry in entries:
                if OF_EPOCH.match(entry.name) and entry.name.endswith((".gif", ".json")):
                    yield "replay", entry
