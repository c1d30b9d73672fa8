"""Commits on disk: their arrays, how one appears at once, which are there, which are kept."""

from __future__ import annotations

import errno
import math
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath  # type: ignore[import-untyped]

from trainer.checkpoints import array_files, manifest_schema
from trainer.checkpoints import manifest as manifests
from trainer.checkpoints.manifest import DamagedCheckpoint
from trainer.checks.modes import Mode
from trainer.host.atomic_files import check_free_space, sync_folder, write_whole
from trainer.host.safe_open import UnsafeFile, read_bytes

ARRAYS = "arrays"
"""The folder of a commit that Orbax writes and reads."""

_MANIFEST = "manifest.json"
_NUMBER = re.compile(r"0|[1-9][0-9]*")
_LEFTOVER = re.compile(r"(0|[1-9][0-9]*)\.(staged|replaced|removed)")


_TWO_FILES = 2**25
"""Bytes above which two files are written, each on a thread of its own.

With more (Orbax would write up to 128 at a time) the threads crowd out training's: beside 25 files
a step of 35 ms took up to 139, beside two up to 60. One alone is read back at a quarter of the
speed.
"""


class ArrayStorage:
    """Writes and reads the bytes of a commit's arrays, as one array whose parts the manifest names.

    With an array a leaf, 10 MB in 16 leaves take Orbax 60 CPU-ms, 2 to 3 for each leaf; as one they
    take 15, and training feels each of them wherever XLA keeps all cores busy. `CheckpointManager`
    adds 20, saves no older number, replaces none, and lists broken commits as if they were whole.
    """

    def __init__(self) -> None:
        types = ocp.type_handlers
        registry = types.create_type_handler_registry(
            (np.ndarray, types.NumpyHandler(deepcopy_host_arrays=False)),
            # Not used, but Orbax warns where it is missing.
            (jax.Array, types.ArrayHandler(array_metadata_store=None)),
        )
        self._orbax = ocp.PyTreeCheckpointHandler(
            use_ocdbt=False, use_compression=False, type_handler_registry=registry
        )

    def write(self, path: Path, data: np.ndarray) -> None:
        """Write bytes into a new directory, durably.

        Args:
            path: of the directory, which is whole only when this returns.
            data: uint8 [bytes], an even number of them.

        Raises:
            OSError: there is no room, or the disk fails.
            RuntimeError: this Orbax writes other files than those that are read.
        """
        path.mkdir()
        half = data.nbytes // 2 if data.nbytes > _TWO_FILES else None
        file = path / array_files.LEAVES / "0"
        # Asked first, since Orbax tells of a full disk by a hundred lines of tracebacks.
        check_free_space(file, data.nbytes, largest=half)
        options = {array_files.LEAVES: ocp.SaveArgs(chunk_byte_size=half)}
        try:
            self._orbax.save(
                epath.Path(path),
                args=ocp.args.PyTreeSave({array_files.LEAVES: data}, save_args=options),
            )
        except Exception:
            check_free_space(file, data.nbytes, largest=half)  # it ran out while this was written
            raise
        try:
            array_files.check_array_files(path, data.nbytes)
        except DamagedCheckpoint as damage:
            raise RuntimeError(
                f"orbax-checkpoint {ocp.__version__} wrote files that could not be read back "
                f"({damage}): install 0.12.8, and report it"
            ) from damage

    def read(self, path: Path, size: int) -> np.ndarray:
        """Read bytes back. Whether they are right, checksums tell: Orbax does not notice.

        Returns:
            uint8 [bytes].

        Raises:
            DamagedCommit: they cannot be read, for whichever of many reasons Orbax gives.
            MemoryError: they are more than the machine has free.
        """
        options = {array_files.LEAVES: ocp.RestoreArgs(restore_type=np.ndarray)}
        try:
            array_files.check_array_files(path, size)
            if size > (memory := array_files.free_memory()):
                raise MemoryError(
                    f"the arrays in {path} take {size:,} bytes and this machine has {memory:,} "
                    "free: restore where there is more memory, or move the commit away"
                )
            tree = self._orbax.restore(
                epath.Path(path), args=ocp.args.PyTreeRestore(restore_args=options)
            )
            return tree[array_files.LEAVES].view(np.uint8)
        except (DamagedCheckpoint, MemoryError):
            raise
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise DamagedCheckpoint(
                f"its arrays cannot be read ({type(error).__name__}: {reason})"
            ) from error


def check_no_link(path: Path) -> None:
    """Refuse a link: what it points to is not of this run, to be written, moved or removed.

    Raises:
        NotADirectoryError: it is one.
    """
    if path.is_symlink():
        raise NotADirectoryError(
            errno.ENOTDIR,
            f"{path} is a link to {os.readlink(path)}, and commits must lie in the run's own "
            "directory: remove the link, or give the directory that it points to",
        )


def ensure_writable(directory: Path) -> None:
    """Make a directory and write to it, to fail now rather than at the first save.

    Raises:
        OSError: it cannot be written (the kind of it that the system gave).
    """
    try:
        if not directory.exists():
            directory.mkdir(parents=True)
            sync_folder(directory.parent)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise type(error)(
            error.errno,
            f"cannot write checkpoints to {directory} ({error.strerror}): choose a directory that "
            "this user may write to, or pass read_only=True to restore only",
        ) from error


def list_epochs(directory: Path) -> list[int]:
    """List the numbers of the commits in a directory, ascending, damaged ones and links too."""
    if not directory.is_dir():
        return []
    with os.scandir(directory) as entries:
        named = [entry for entry in entries if _NUMBER.fullmatch(entry.name)]
    return sorted(int(entry.name) for entry in named if entry.is_symlink() or entry.is_dir())


def list_complete(directory: Path) -> list[int]:
    """List the numbers of the commits that have a manifest and are no links, ascending."""
    paths = {n: directory / str(n) for n in list_epochs(directory)}
    return [n for n, p in paths.items() if not p.is_symlink() and (p / _MANIFEST).is_file()]


def recover(directory: Path) -> None:
    """Put back commits whose replacement was interrupted between its two renames."""
    for path in directory.glob("*.replaced"):
        if _LEFTOVER.fullmatch(path.name) and not os.path.lexists(path.with_suffix("")):
            path.rename(path.with_suffix(""))


def remove_leftovers(directory: Path) -> None:
    """Remove what interrupted saves and removals left.

    Raises:
        NotADirectoryError: a link has such a name.
    """
    for path in directory.iterdir():
        if _LEFTOVER.fullmatch(path.name):
            check_no_link(path)
            _removed(path)


def _removed(path: Path) -> None:
    """Remove a folder, or whatever else stands in its place and is no link."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def make_staging_folder(directory: Path, number: int) -> Path:
    """Make the empty directory in which a commit is written; it is no commit yet.

    Raises:
        NotADirectoryError: a link is in the place of the commit.
    """
    check_no_link(directory / str(number))
    path = directory / f"{number}.staged"
    path.mkdir()
    return path


def discard(stage: Path) -> None:
    """Remove what was staged and failed, so that the disk it filled has its room again."""
    shutil.rmtree(stage, ignore_errors=True)


def publish(stage: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest and make what was staged a commit, replacing one of that number.

    Killed at any instant, it leaves the old commit or the new one (see `recover`).

    Raises:
        ValueError: the manifest is larger than what is read.
    """
    content = manifests.encode_manifest(manifest)
    if len(content) > manifest_schema.MOST_BYTES:
        raise ValueError(
            f"the manifest of {stage.stem} takes {len(content)} bytes and may take "
            f"{manifest_schema.MOST_BYTES}: keep texts and large integers out of the state, "
            "or join leaves"
        )
    write_whole(stage / _MANIFEST, content)
    for folder in (stage, *(path for path in stage.rglob("*") if path.is_dir())):
        sync_folder(folder)
    final, old = stage.with_suffix(""), stage.with_suffix(".replaced")
    if os.path.lexists(final):
        final.rename(old)
    try:
        stage.rename(final)
    except OSError:
        recover(final.parent)
        raise
    sync_folder(final.parent)
    if os.path.lexists(old):
        _removed(old)


def remove(directory: Path, number: int) -> None:
    """Remove a commit; killed half-way, it leaves none that looks whole."""
    path = directory / f"{number}.removed"
    (directory / str(number)).rename(path)
    shutil.rmtree(path)


def read_manifest(directory: Path, number: int) -> dict[str, Any]:
    """Read what a commit says of itself.

    Raises:
        DamagedCommit: it is missing, unreadable or not as it was written.
        ValueError: a newer version of this library wrote it.
    """
    where = f"commit {number} in {directory}"
    try:
        check_no_link(directory / str(number))
        manifest = manifests.decode_manifest(_content(directory / str(number) / _MANIFEST))
        manifest_schema.check_manifest(manifest)
    except OSError as error:
        raise DamagedCheckpoint(f"{where}: its manifest cannot be read ({error})") from error
    except DamagedCheckpoint as damage:
        raise DamagedCheckpoint(f"{where}: {damage}") from damage
    if manifest["format"] > manifests.FORMAT:
        raise ValueError(
            f"{where} is of format {manifest['format']}, and this version reads up to "
            f"{manifests.FORMAT}: restore it with what wrote it, {manifest.get('versions')!r:.200}"
        )
    if manifest["epoch"] != number:
        raise DamagedCheckpoint(f"{where}: it says that it is commit {manifest['epoch']}")
    return manifest


def _content(file: Path) -> bytes:
    """Read a manifest's file, if it is one and not too large to be one."""
    try:
        return read_bytes(file, most=manifest_schema.MOST_BYTES)
    except UnsafeFile as error:
        raise DamagedCheckpoint(f"its manifest is none of this library's: {error}") from error


def rank_by_score(scores: Mapping[int, float | None], mode: Mode) -> list[int]:
    """Order commits from the best score to the worst; without a score, or nan, none is best.

    >>> rank_by_score({1: 0.5, 2: float("nan"), 3: 0.25, 4: None}, "min")
    [3, 1]
    """
    known = {n: score for n, score in scores.items() if score is not None and not math.isnan(score)}
    return sorted(known, key=lambda n: (known[n] if mode == "min" else -known[n], n))


def select_retained(
    scores: Mapping[int, float | None], *, keep: int, keep_best: int, mode: Mode, every: int | None
) -> Collection[int]:
    """Choose the commits to keep: the newest, the best, and every n-th.

    >>> sorted(select_retained({1: 0.1, 2: 0.3, 3: 0.2, 4: 0.9, 5: 0.8}, keep=1, keep_best=1,
    ...                 mode="min", every=4))
    [1, 4, 5]
    """
    newest = sorted(scores)[-keep:]
    best = rank_by_score(scores, mode)[:keep_best]
    return {*newest, *best, *(n for n in scores if every and n % every == 0)}
