"""The files of a checkpoint's arrays as Orbax writes them, checked before they are read."""

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
"""The one array in a checkpoint: its name in Orbax, and its folder."""

STRAY = (".DS_Store", "._", ".nfs")
"""Prefixes of files that file browsers and network disks leave anywhere; nothing reads them."""

MOST_FILES = 2
"""The largest number of files that hold the array's bytes."""

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
    """Check that a folder of arrays has exactly the files of a checkpoint of this size.

    The metadata are compared as bytes, not as JSON, so that there is no second way to read them:
    what Orbax and tensorstore get to read names no other file, no driver, no compression and no
    other size. No link is followed. The array's bytes are verified by checksums elsewhere.

    Args:
        path: of the folder.
        size: bytes of the array.

    Raises:
        DamagedCheckpoint: it is anything else.
    """
    _check_kinds(path, {"_METADATA": stat.S_IFREG, LEAVES: stat.S_IFDIR})
    _check_size(path / "_METADATA", len(_METADATA))
    if _read_file(path / "_METADATA") != _METADATA:
        raise DamagedCheckpoint(f"{_short(path / '_METADATA')} is not what Orbax writes")
    files = _count_files(path / LEAVES, size)
    names = [str(number) for number in range(files)]
    _check_kinds(path / LEAVES, dict.fromkeys([".zarray", *names], stat.S_IFREG))
    for name in names:
        _check_size(path / LEAVES / name, size // files)


def get_free_memory() -> int:
    """Return the bytes of memory that this process could allocate.

    A sparse file can claim any size, and a process that allocates too much is killed.

    >>> get_free_memory() > 0
    True
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with contextlib.suppress(OSError):  # not on Linux
        words = Path("/proc/meminfo").read_text().split()
        limits.append(int(words[words.index("MemAvailable:") + 1]) * 1024)
    with contextlib.suppress(OSError, ValueError):  # not in a container, or one without a limit
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits)


def _count_files(folder: Path, size: int) -> int:
    """Return the number of files that hold the array's bytes."""
    file = folder / ".zarray"
    if not stat.S_ISREG(_status(file).st_mode):
        raise DamagedCheckpoint(
            f"{_short(file)} is {describe_file_type(_status(file).st_mode)} and no file"
        )
    for files in range(1, MOST_FILES + 1):
        expected = _build_zarray(size, size // files)
        if _read_file(file, len(expected)) == expected:
            return files
    raise DamagedCheckpoint(
        f"{_short(file)} does not describe {size} plain bytes in {MOST_FILES} files at most"
    )


def _read_file(file: Path, most: int = MOST_TEXT) -> bytes:
    """Read a file of at most so many bytes; return b"" for any other."""
    try:
        return read_bytes(file, most=most)
    except OSError:  # or it was exchanged since its kind was checked
        return b""


def _build_zarray(size: int, chunk: int) -> bytes:
    """Build the `.zarray` of `size` bytes in files of `chunk` bytes."""
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
    """Check that a folder is one, and has only these entries, each of its kind and no link."""
    mode = _status(folder).st_mode
    if not stat.S_ISDIR(mode):
        raise DamagedCheckpoint(f"{_short(folder)} is {describe_file_type(mode)} and no folder")
    found = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name not in wanted:
                if entry.name.startswith(STRAY) and entry.is_file(follow_symlinks=False):
                    continue
                raise DamagedCheckpoint(
                    f"{_short(folder)} holds {entry.name!r}, which is no part of it"
                )
            found[entry.name] = entry.stat(follow_symlinks=False).st_mode
    for name, needed in wanted.items():
        if name not in found:
            raise DamagedCheckpoint(f"{_short(folder / name)} is missing")
        if stat.S_IFMT(found[name]) != needed:
            raise DamagedCheckpoint(
                f"{_short(folder / name)} is of another kind: {describe_file_type(found[name])}"
            )


def _check_size(file: Path, size: int) -> None:
    if (found := _status(file).st_size) != size:
        raise DamagedCheckpoint(f"{_short(file)} has {found} bytes instead of {size}")


def _status(path: Path) -> os.stat_result:
    try:
        return path.lstat()
    except OSError as error:
        raise DamagedCheckpoint(f"{_short(path)} is missing ({error.strerror})") from error


def _short(path: Path) -> str:
    """Return a file's name with its folder: `leaves/0`."""
    return "/".join(path.parts[-2:])
