"""Paths that users pass: local, with `~` expanded, and made absolute at once."""

from __future__ import annotations

import os
import re
from pathlib import Path

from trainer.checks.arguments import describe_value

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)
"""A scheme has two letters or more; `Path` turns its two slashes into one."""


def to_absolute_path(path: str | os.PathLike[str], who: str = "") -> Path:
    """Return the absolute path of a file or folder that a user named.

    Every function that takes a path calls this first, so that a later `os.chdir` changes nothing,
    and a URL does not become a folder named `s3:`. Links are not resolved, and nothing need exist
    at the path.

    Args:
        path: absolute, relative to the working directory, or beginning with `~` or `~user`.
        who: what takes it, for the message.

    Raises:
        TypeError: it is not a text path.
        ValueError: it is a URL, is empty, or names the home of an unknown user.

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
        # This leaves out what may be a password, which may contain a slash.
        rest = re.sub(r"^(?:[^/@]*|[^/:@]*:.*)@", "***@", url[2])
        remedy = f"give the path itself, {f'/{rest}'!r}"
        if url[1] != "file":
            remedy = (
                "only checkpoints may lie in a bucket (save_checkpoints, restore, load_params and "
                "follow_checkpoints take s3:// and gs://): mount it and give the path, or copy "
                f"finished runs there (a local folder of this name is {f'./{url[1]}:/{rest}'!r})"
            )
        raise ValueError(f"{needs}; got the URL {f'{url[1]}://{rest}'!r}: {remedy}")
    expanded = os.path.expanduser(text)
    if text.startswith("~") and expanded == text:
        raise ValueError(
            f"{needs}; got {text!r}, and no user of this name has a home here (a file or folder "
            f"of this name is {f'./{text}'!r})"
        )
    return Path(expanded).absolute()
