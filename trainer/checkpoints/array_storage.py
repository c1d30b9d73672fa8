"""The bytes of a checkpoint's arrays, written and read through Orbax; files are checked first."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath  # type: ignore[import-untyped]

from trainer.checkpoints.manifest import DamagedCheckpoint
from trainer.host.atomic_files import check_free_space
from trainer.host.safe_open import MOST_TEXT, describe_file_type, read_bytes

LEAVES = "leaves"
"""The one array in a checkpoint: its name in Orbax, and its folder."""

STRAY = (".DS_Store", "._", ".nfs")
"""Prefixes of files that file browsers and network disks leave anywhere; nothing reads them."""

MOST_FILES = 2
"""The largest number of files that hold the array's bytes."""

_TWO_FILES = 2**25
"""Bytes above which two files are written, each on its own thread.

With more files (Orbax would write up to 128 at a time) their threads slow training down: beside 25
files a step of 35 ms took up to 139, beside two up to 60. One file alone is read at a quarter of
the speed.
"""

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


def save_arrays(path: Path, data: np.ndarray) -> None:
    """Write the bytes of all arrays as one array into a new directory, durably.

    The manifest names its parts. With one array per leaf, 10 MB in 16 leaves take Orbax 60 CPU-ms,
    2 to 3 for each leaf; as one array they take 15, which slow training down when XLA keeps all
    cores busy. `CheckpointManager` adds 20, saves no older number, replaces none, and lists broken
    checkpoints as complete.

    Args:
        path: of the directory, which is complete only when this returns.
        data: uint8 [bytes], an even number of them.

    Raises:
        OSError: there is not enough space, or the disk fails.
        RuntimeError: this version of Orbax writes files that this library cannot read.
    """
    path.mkdir()
    half = data.nbytes // 2 if data.nbytes > _TWO_FILES else None
    file = path / LEAVES / "0"
    # Checked first, since Orbax reports a full disk by a hundred lines of tracebacks.
    check_free_space(file, data.nbytes, largest=half)
    options = {LEAVES: ocp.SaveArgs(chunk_byte_size=half)}
    try:
        _make_handler().save(
            epath.Path(path), args=ocp.args.PyTreeSave({LEAVES: data}, save_args=options)
        )
    except Exception:
        check_free_space(file, data.nbytes, largest=half)  # it ran out while this was written
        raise
    try:
        check_array_files(path, data.nbytes)
    except DamagedCheckpoint as damage:
        raise RuntimeError(
            f"orbax-checkpoint {ocp.__version__} wrote files that could not be read back "
            f"({damage}): install 0.12.8, and report it"
        ) from damage


def load_arrays(path: Path, size: int) -> np.ndarray:
    """Read the bytes of all arrays, uint8 [bytes].

    The caller verifies checksums: Orbax does not notice wrong bytes.

    Raises:
        DamagedCheckpoint: they cannot be read, for any of Orbax's many reasons.
        MemoryError: they take more memory than the machine has free.
    """
    options = {LEAVES: ocp.RestoreArgs(restore_type=np.ndarray)}
    try:
        check_array_files(path, size)
        if size > (memory := get_free_memory()):
            raise MemoryError(
                f"the arrays in {path} take {size:,} bytes and this machine has {memory:,} "
                "free: restore where there is more memory, or move the checkpoint away"
            )
        tree = _make_handler().restore(
            epath.Path(path), args=ocp.args.PyTreeRestore(restore_args=options)
        )
        return tree[LEAVES].view(np.uint8)
    except (DamagedCheckpoint, MemoryError):
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise DamagedCheckpoint(
            f"its arrays cannot be read ({type(error).__name__}: {reason})"
        ) from error


def _make_handler() -> ocp.PyTreeCheckpointHandler:
    types = ocp.type_handlers
    registry = types.create_type_handler_registry(
        (np.ndarray, types.NumpyHandler(deepcopy_host_arrays=False)),
        # Not used, but Orbax warns if it is missing.
        (jax.Array, types.ArrayHandler(array_metadata_store=None)),
    )
    return ocp.PyTreeCheckpointHandler(
        use_ocdbt=False, use_compression=False, type_handler_registry=registry
    )


def check_array_files(path: Path, size: int) -> None:
    """Check that a folder of arrays has exactly the files of a checkpoint of `size` bytes.

    The metadata are compared as bytes, not as JSON, so that there is no second way to read them:
    what Orbax and tensorstore get to read names no other file, no driver, no compression and no
    other size. No link is followed. The array's bytes are verified by checksums elsewhere.

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
    _check_kind(file, stat.S_IFREG, "file")
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
    _check_kind(folder, stat.S_IFDIR, "folder")
    found = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name in wanted:
                found[entry.name] = entry.stat(follow_symlinks=False).st_mode
            elif not (entry.name.startswith(STRAY) and entry.is_file(follow_symlinks=False)):
                raise DamagedCheckpoint(
                    f"{_short(folder)} holds {entry.name!r}, which is no part of it"
                )
    for name, needed in wanted.items():
        if name not in found:
            raise DamagedCheckpoint(f"{_short(folder / name)} is missing")
        if stat.S_IFMT(found[name]) != needed:
            raise DamagedCheckpoint(
                f"{_short(folder / name)} is of another kind: {describe_file_type(found[name])}"
            )


def _check_kind(path: Path, kind: int, name: str) -> None:
    mode = _status(path).st_mode
    if stat.S_IFMT(mode) != kind:
        raise DamagedCheckpoint(f"{_short(path)} is {describe_file_type(mode)} and no {name}")


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
