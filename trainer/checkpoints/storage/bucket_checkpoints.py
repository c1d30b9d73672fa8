"""Checkpoints in a bucket: their data first, under names of their own, and the manifest last.

    <run>/checkpoints/12/manifest.json         names its data, and files of others it refers to
    <run>/data/12.<run's nonce>-<save>/...     the parts of the processes

Whatever is killed, a manifest has all its data: nothing is ever renamed or written twice, and what
is in it is removed only when no manifest names it.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Callable, Collection, Iterable, Sequence

from trainer.checkpoints.storage.bucket_path import BucketError, BucketPath
from trainer.checkpoints.storage.directory_lock import DirectoryInUse
from trainer.checkpoints.storage.disk_checkpoints import MANIFEST
from trainer.checkpoints.storage.lease import check_lease

log = logging.getLogger("entracte")

SAVE = re.compile(r"(0|[1-9][0-9]*)\.[0-9a-f]+-[0-9]+")
"""The names of saves, and of their data: epoch, nonce of the run, number. All else below `data` is
not this library's."""

_CHECKPOINT = re.compile(r"(0|[1-9][0-9]*)/" + re.escape(MANIFEST))


class NamedData:
    """Which data the checkpoints in a bucket name, for the process that trains there.

    Each manifest is read once: while this process has the lease, nobody else writes one.

    Args:
        read_names: returns what the content of a manifest names: its own data, and the shared files
            in that of others (`process_0.12.ab-1`); None if it is damaged.
    """

    def __init__(self, read_names: Callable[[bytes], Sequence[str] | None]) -> None:
        self._read_names = read_names
        self._found: dict[int, Sequence[str] | None] | None = None

    def read(self, directory: BucketPath) -> dict[int, Sequence[str] | None]:
        """Return, by the numbers of the checkpoints, what each names."""
        if self._found is None:
            found = {}
            for number in list_numbers(directory):
                content, _ = (directory / str(number) / MANIFEST).read_with_generation()
                found[number] = None if content is None else self._read_names(content)
            self._found = found
        return self._found

    def forget(self) -> None:
        """Read all manifests again the next time: one may be there that was not noted."""
        self._found = None

    def note(self, number: int, content: bytes | None) -> Sequence[str]:
        """Note the manifest of a checkpoint, None if it has none any more; return its names."""
        names = None if content is None else self._read_names(content)
        if self._found is not None:
            self._found[number] = names
            if content is None:
                del self._found[number]
        return names or ()


class UnknownOutcomeError(BucketError):
    """A bucket did not say whether it wrote a manifest: its data must stay."""


def get_stage(directory: BucketPath, name: str) -> BucketPath:
    """Return the path below which the data of a checkpoint lies, staged or published."""
    return directory.parent / "data" / name


def get_checkpoints(stage: BucketPath) -> BucketPath:
    """Return the path of the checkpoints, the opposite of `get_stage`."""
    return stage.parent.parent / "checkpoints"


def ensure_writable(directory: BucketPath) -> None:
    """Write an object beside the checkpoints, and remove it: raise now, rather than at a save."""
    token = directory.parent / f"writable-{secrets.token_hex(8)}"
    token.touch()
    token.unlink()


def list_numbers(directory: BucketPath) -> list[int]:
    """List the numbers of the checkpoints, ascending: each has a manifest and is complete."""
    found = (_CHECKPOINT.fullmatch(key) for key in directory.list_keys())
    return sorted(int(key[1]) for key in found if key)


def publish(stage: BucketPath, number: int, manifest: bytes, named: NamedData) -> None:
    """Write the manifest of a checkpoint whose data is staged; remove what nothing names then.

    Args:
        stage: with the data, which the manifest names.
        number: of the checkpoint.
        manifest: the content.
        named: of the run.

    Raises:
        DirectoryInUse: the lease of this run was lost, or another process wrote this checkpoint.
        UnknownOutcomeError: the bucket did not say whether it wrote the manifest.
    """
    directory = get_checkpoints(stage)
    file = directory / str(number) / MANIFEST
    content, before = file.read_with_generation()
    named.read(directory)
    replaced = _list_data(number, named.note(number, content))
    check_lease(directory.parent)
    try:
        written = file.replace(manifest, None if content is None else before)
    except BucketError as error:
        named.forget()
        raise UnknownOutcomeError(str(error)) from error
    if written is None:
        raise DirectoryInUse(
            f"another process wrote checkpoint {number} in {directory} while this one saved it: "
            "give this run another path, or end that process first"
        )
    named.note(number, manifest)
    _remove_unnamed(directory, replaced, named)


def remove_tree(path: BucketPath, *, but: Collection[str] = ()) -> None:
    """Remove the objects below a path, but those below some paths relative to it.

    What cannot be removed stays, and is logged.
    """
    try:
        path.remove_all(but=but)
    except BucketError as error:
        log.warning("what is left of %s takes space until the next run: %s", path, error)


def remove(directory: BucketPath, number: int, named: NamedData) -> None:
    """Remove a checkpoint: its manifest first, so that none is left that looks complete.

    Its data stays while another checkpoint refers to it.

    Raises:
        DirectoryInUse: the lease of this run was lost.
    """
    file = directory / str(number) / MANIFEST
    content, _ = file.read_with_generation()
    named.read(directory)
    removed = _list_data(number, named.note(number, content))
    check_lease(directory.parent)
    file.unlink()
    named.note(number, None)
    _remove_unnamed(directory, removed, named)


def remove_leftovers(stage: BucketPath, named: NamedData) -> None:
    """Remove the data that no manifest names: what killed runs staged.

    Of a checkpoint whose manifest cannot be read, all data stays.

    Args:
        stage: of the save in progress, which stays.
        named: of the run.

    Raises:
        DirectoryInUse: the lease of this run was lost.
    """
    directory = get_checkpoints(stage)
    there = [path.name for path in stage.parent.iterdir() if SAVE.fullmatch(path.name)]
    read = named.read(directory)
    unknown = {str(number) for number, names in read.items() if names is None}
    kept = {stage.name, *(names[0] for names in read.values() if names)}
    staged = [x for x in there if x not in kept and x.partition(".")[0] not in unknown]
    if staged:
        check_lease(directory.parent)
        _remove_unnamed(directory, staged, named)


def _remove_unnamed(directory: BucketPath, data: Iterable[str], named: NamedData) -> None:
    """Remove what no checkpoint names, of data that some may name."""
    read = [names for names in named.read(directory).values() if names]
    own = {names[0] for names in read}
    shared: dict[str, set[str]] = {}
    for file, _, name in (file.partition(".") for names in read for file in names[1:]):
        shared.setdefault(name, set()).add(f"arrays/{file}")
    for name in {*data} - own:
        remove_tree(get_stage(directory, name), but=shared.get(name, ()))


def _list_data(number: int, names: Sequence[str]) -> list[str]:
    """List the data in which a checkpoint names something, its own first.

    Its own is of its number, or the manifest was copied and means that of another checkpoint.
    """
    own = [name for name in names[:1] if name.partition(".")[0] == str(number)]
    found = own + [file.partition(".")[2] for file in names[1:]]
    return [name for name in found if SAVE.fullmatch(name)]
