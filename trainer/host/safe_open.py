"""Open files by paths that others may have prepared: no link, pipe or device instead."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

MOST_TEXT = 2**24
"""The most bytes of a text that is read at once: a larger file is no configuration."""

_WRITES = os.O_WRONLY | os.O_RDWR
_SEARCH = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class UnsafeFile(OSError):  # noqa: N818 - what is the case, as its message says
    """A path does not lead to a regular file or directory of this user, as it must."""


def open_regular(
    path: str | os.PathLike[str],
    flags: int = os.O_RDONLY,
    mode: int = 0o666,
    *,
    follow: bool = False,
    folder: int | None = None,
    mine: bool = False,
) -> int:
    """Open a regular file, and nothing else: a pipe would hang, a link would lead elsewhere.

    Its kind is checked before it is opened, since opening a device may have effects, and again
    afterwards. `os.O_TRUNC` must not be among the flags: truncate the descriptor instead.

    Args:
        path, flags, mode: as of `os.open`.
        follow: follow links, for a path that the user gave.
        folder: descriptor of the directory that the path starts from, see `open_own_folder`.
        mine: require that the file belongs to this user, for a path from elsewhere.

    Returns:
        The descriptor, which the caller closes.

    Raises:
        UnsafeFile: it is a link, a pipe, a device; it is opened for writing and has several names
            (hard links); or it belongs to another user.
        OSError: it is a directory, or cannot be opened.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as made:
    ...     os.mkfifo(f"{made}/metrics.jsonl")
    ...     open_regular(f"{made}/metrics.jsonl")
    Traceback (most recent call last):
        ...
    trainer.host.safe_open.UnsafeFile: [Errno 22] it is a named pipe, and must be a regular file...
    """
    try:
        _check(path, os.stat(path, dir_fd=folder, follow_symlinks=follow), flags, follow, mine)
    except FileNotFoundError:
        if not flags & os.O_CREAT:
            raise
    flags |= os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    descriptor = os.open(path, flags, mode, dir_fd=folder)
    try:
        _check(path, os.fstat(descriptor), flags, follow, mine)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def create_new(path: str | os.PathLike[str]) -> int:
    """Create a file for writing, replacing what a dead process or anybody else left at its path.

    Returns:
        The descriptor, which the caller closes.

    Raises:
        OSError: it cannot be created, for example because a directory is in its place.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as made:
    ...     os.symlink(f"{made}/elsewhere", f"{made}/a.tmp")
    ...     os.close(create_new(f"{made}/a.tmp"))
    ...     os.listdir(made)
    ['a.tmp']
    """
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(path, flags, 0o666)


def open_own_folder(path: str | os.PathLike[str]) -> int:
    """Open a directory of this user whose absolute path comes from elsewhere, to write in it.

    No component of the path may be a link; each is opened inside the one before, so that none can
    be exchanged meanwhile.

    Returns:
        The descriptor, for `folder` of `open_regular`; the caller closes it.

    Raises:
        UnsafeFile: the path is relative or goes up, a component is no directory or a link, or the
            directory belongs to another user.
        OSError: it does not exist, or may not be entered.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as made:
    ...     os.symlink(made, f"{made}/link")
    ...     open_own_folder(f"{os.path.realpath(made)}/link")
    Traceback (most recent call last):
        ...
    trainer.host.safe_open.UnsafeFile: [Errno 20] it leads through a link, or is no directory...
    """
    path = os.fspath(path)
    root, *names = Path(path).parts or ("",)
    if not os.path.isabs(path) or ".." in names:
        raise UnsafeFile(errno.EINVAL, "it must be an absolute path without '..'", path)
    here = os.open(root, _SEARCH)
    try:
        for name in names:
            try:
                inner = os.open(name, _SEARCH, dir_fd=here)
            except OSError as error:
                if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                    raise
                problem = "it leads through a link, or is no directory"
                raise UnsafeFile(errno.ENOTDIR, problem, path) from error
            os.close(here)
            here = inner
        if (owner := os.fstat(here).st_uid) != os.geteuid():
            raise UnsafeFile(errno.EPERM, _foreign(owner), path)
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=here)
    finally:
        os.close(here)


def make_own_folder(path: str | os.PathLike[str], below: str | os.PathLike[str]) -> None:
    """Create a directory below an own one whose path comes from elsewhere; see `open_own_folder`.

    Args:
        path: of the directory, which may exist.
        below: absolute; it must exist.

    Raises:
        UnsafeFile: it leads elsewhere, or another user owns one of them.
        OSError: it cannot be created.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as made:
    ...     run = os.path.realpath(made)
    ...     make_own_folder(f"{run}/evaluations/full", run)
    ...     os.listdir(f"{run}/evaluations")
    ['full']
    """
    here = os.fspath(below)
    for name in Path(path).relative_to(here).parts:
        folder = open_own_folder(here)
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, dir_fd=folder)
        finally:
            os.close(folder)
        here = os.path.join(here, name)
    os.close(open_own_folder(here))


def read_bytes(
    path: str | os.PathLike[str], *, follow: bool = False, most: int = MOST_TEXT
) -> bytes:
    """Read a whole regular file of at most so many bytes; `follow` is that of `open_regular`.

    Raises:
        UnsafeFile: it is no regular file, or larger.
        OSError: it cannot be read.
    """
    with open(open_regular(path, follow=follow), "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        problem = f"it has more than {most:,} bytes, the most that is read here"
        raise UnsafeFile(errno.EFBIG, problem, os.fspath(path))
    return content


def is_still_there(path: str | os.PathLike[str], file: int) -> bool | None:
    """Return whether an open file is the one that others find at its path; None if none is there.

    A link is another file.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile(delete=False) as file:
    ...     found = [is_still_there(file.name, file.fileno())]
    ...     os.unlink(file.name)
    ...     [*found, is_still_there(file.name, file.fileno())]
    [True, None]
    """
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return os.path.samestat(found, os.fstat(file))


def describe_file_type(mode: int) -> str:
    """Return what kind of file a mode describes.

    >>> (describe_file_type(stat.S_IFLNK), describe_file_type(stat.S_IFIFO),
    ...  describe_file_type(stat.S_IFREG))
    ('a link', 'a named pipe', 'a file')
    """
    return _KINDS.get(stat.S_IFMT(mode), "a special file")


_KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def _check(
    path: str | os.PathLike[str], status: os.stat_result, flags: int, follow: bool, mine: bool
) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(status.st_mode):
        kind = describe_file_type(status.st_mode)
        number, problem = errno.EINVAL, f"it is {kind}, and must be a regular file"
    elif not follow and flags & _WRITES and status.st_nlink > 1:
        number, problem = errno.EMLINK, "it has other names (hard links), which would change too"
    elif mine and status.st_uid != os.geteuid():
        number, problem = errno.EPERM, _foreign(status.st_uid)
    else:
        return
    raise UnsafeFile(number, problem, os.fspath(path))


def _foreign(owner: int) -> str:
    return f"it belongs to user {owner}, and this is user {os.geteuid()}"
