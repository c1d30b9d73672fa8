"""The files of a commit's arrays, as Orbax writes them: what they must be to be read."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from trainer.checkpoints.manifest import DamagedCheckpoint
from trainer.host.safe_open import MOST_TEXT, describe_file_type, read_bytes

LEAVES = "leaves"
"""The one array that a commit holds: its name in Orbax, and its folder."""

STRAY = (".DS_Store", "._", ".nfs")
"""How files begin that file browsers and network disks leave anywhere; nothing reads them."""

MOST_FILES = 2
"""Files that hold the array's bytes, at most."""

_METADATA = json.dumps(
    {
        "tree_metadata": {
            f"('{LEAVES}',)": {
                "key_metadata": [{"key": LEAVES, "key_type": 2}],
                "value_metadata": {"value_type": "np.ndarray", "skip_deserialize": False},
            }
        },
        "use_ocdbt": False,
        "use_zarr3": False,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": None,
    }
).encode()


def check_array_files(path: Path, size: int) -> None:
    """Check that a folder of arrays is, file by file, what a commit of this size is written as.

    Compared as bytes, and not as JSON, so that there is no second way to read them: what Orbax and
    tensorstore are let near names no other file, no driver, no compression and no other size. Nor
    is a link followed. Whether the array's bytes are right, checksums tell.

    Args:
        path: of the folder.
        size: bytes of the array.

    Raises:
        DamagedCommit: it is anything else.
    """
    _check_kinds(path, {"_METADATA": stat.S_IFREG, LEAVES: stat.S_IFDIR})
    _check_size(path / "_METADATA", len(_METADATA))
    if _content(path / "_METADATA") != _METADATA:
        raise DamagedCheckpoint(f"{_named(path / '_METADATA')} is not what Orbax writes")
    files = _parts(path / LEAVES, size)
    names = [str(number) for number in range(files)]
    _check_kinds(path / LEAVES, dict.fromkeys([".zarray", *names], stat.S_IFREG))
    for name in names:
        _check_size(path / LEAVES / name, size // files)


def free_memory() -> int:
    """Give the bytes of memory that could be taken: of a file without contents none is needed to
    claim any size, and a process that takes what is not there is killed.

    >>> free_memory() > 0
    True
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with contextlib.suppress(OSError):  # not on Linux
        words = Path("/proc/meminfo").read_text().split()
        limits.append(int(words[words.index("MemAvailable:") + 1]) * 1024)
    with contextlib.suppress(OSError, ValueError):  # not in a container, or one without a limit
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits)


def _parts(folder: Path, size: int) -> int:
    """Give the number of files that the array's bytes are in."""
    file = folder / ".zarray"
    if not stat.S_ISREG(_status(file).st_mode):
        raise DamagedCheckpoint(
            f"{_named(file)} is {describe_file_type(_status(file).st_mode)} and no file"
        )
    for files in range(1, MOST_FILES + 1):
        described = _described(size, size // files)
        if _content(file, len(described)) == described:
            return files
    raise DamagedCheckpoint(
        f"{_named(file)} does not describe {size} plain bytes in {MOST_FILES} files at most"
    )


def _content(file: Path, most: int = MOST_TEXT) -> bytes:
    """Read a file; nothing of one that is larger."""
    try:
        return read_bytes(file, most=most)
    except OSError:  # or it was exchanged since its kind was checked
        return b""


def _described(size: int, chunk: int) -> bytes:
    """Give the `.zarray` of so many bytes in files of `chunk` bytes."""
    content = {
        "chunks": [chunk],
        "compressor": None,
        "dimension_separator": ".",
        "dtype": "|u1",
        "fill_value": None,
        "filters": None,
        "order": "C",
        "shape": [size],
        "zarr_format": 2,
    }
    return json.dumps(content, separators=(",", ":")).encode()


def _check_kinds(folder: Path, wanted: Mapping[str, int]) -> None:
    """Check that a folder is one, and holds these names alone, each of its kind and no link."""
    mode = _status(folder).st_mode
    if not stat.S_ISDIR(mode):
        raise DamagedCheckpoint(f"{_named(folder)} is {describe_file_type(mode)} and no folder")
    found = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name not in wanted:
                if entry.name.startswith(STRAY) and entry.is_file(follow_symlinks=False):
                    continue
                raise DamagedCheckpoint(
                    f"{_named(folder)} holds {entry.name!r}, which is no part of it"
                )
            found[entry.name] = entry.stat(follow_symlinks=False).st_mode
    for name, needed in wanted.items():
        if name not in found:
            raise DamagedCheckpoint(f"{_named(folder / name)} is missing")
        if stat.S_IFMT(found[name]) != needed:
            raise DamagedCheckpoint(
                f"{_named(folder / name)} is of another kind: {describe_file_type(found[name])}"
            )


def _check_size(file: Path, size: int) -> None:
    if (found := _status(file).st_size) != size:
        raise DamagedCheckpoint(f"{_named(file)} has {found} bytes instead of {size}")


def _status(path: Path) -> os.stat_result:
    try:
        return path.lstat()
    except OSError as error:
        raise DamagedCheckpoint(f"{_named(path)} is missing ({error.strerror})") from error


def _named(path: Path) -> str:
    """Name a file with its folder: `leaves/0`."""
    return "/".join(path.parts[-2:])
