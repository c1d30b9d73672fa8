"""Paths that users give: local ones, with `~` expanded, and absolute at once."""

from __future__ import annotations

import os
import re
from pathlib import Path

from trainer.checks.arguments import describe_value

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)
"""A scheme has two letters or more, and `Path` has made one slash of the two."""


def to_absolute_path(path: str | os.PathLike[str], who: str = "") -> Path:
    """Give the absolute path of a file or folder that a user named.

    Everything that takes a path passes it through here as soon as it is given, so that a later
    `os.chdir` changes nothing, and a URL does not become a folder named `s3:`. Links are not
    resolved, and nothing has to be there.

    Args:
        path: absolute, relative to the working directory, or with `~` or `~user` at its beginning.
        who: what takes it, for the message.

    Raises:
        TypeError: it is no path of text.
        ValueError: it is a URL, is empty, or names the home of a user who is not known.

    >>> to_absolute_path("/runs/digits")
    PosixPath('/runs/digits')
    >>> (to_absolute_path("runs") == Path.cwd() / "runs",
    ...  to_absolute_path("~/runs") == Path.home() / "runs")
    (True, True)
    >>> to_absolute_path("s3://bucket/run", "save_checkpoints")
    Traceback (most recent call last):
    ValueError: save_checkpoints needs a path on a local file system; got the URL 's3://bucket/run'...
    """
    needs = f"{who or 'this'} needs a path on a local file system"
    if not isinstance(path, str | bytes | os.PathLike):
        raise TypeError(f"{needs}, a text or pathlib.Path; got {describe_value(path)}")
    text = os.fspath(path)
    if not isinstance(text, str):
        raise TypeError(f"{needs}, as text; got {text!r:.100}: os.fsdecode(path) makes text of it")
    if not text:
        raise ValueError(f"{needs}; got an empty one: '.' is the working directory")
    if url := _URL.match(text):
        # What this leaves out may be a password, and that may have a slash.
        rest = re.sub(r"^(?:[^/@]*|[^/:@]*:.*)@", "***@", url[2])
        remedy = f"give the path itself, {f'/{rest}'!r}"
        if url[1] != "file":
            remedy = (
                "remote storage is not written to directly: mount it and give the path, or copy "
                f"what is finished there (a local folder named so is {f'./{url[1]}:/{rest}'!r})"
            )
        raise ValueError(f"{needs}; got the URL {f'{url[1]}://{rest}'!r}: {remedy}")
    expanded = os.path.expanduser(text)
    if text.startswith("~") and expanded == text:
        raise ValueError(
            f"{needs}; got {text!r}, and no user of this name has a home here (a file or folder "
            f"of this name is {f'./{text}'!r})"
        )
    return Path(expanded).absolute()
