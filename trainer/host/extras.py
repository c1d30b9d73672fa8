"""Libraries that only some parts need: one error names the extra that installs them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


def install_command(*extras: str) -> str:
    """Return the shell command that installs extras of this library.

    >>> install_command("config", "console")
    'pip install "entracte[config,console]"'
    """
    return f'pip install "entracte[{",".join(extras)}]"'


@contextlib.contextmanager
def require_extra(extra: str, who: str, library: str) -> Iterator[None]:
    """Name the extra to install, what needs it and the library if an import fails within.

    Raises:
        ImportError: the library is not installed; a note says what to install.

    >>> with require_extra("examples", "my_source", "scikit-learn"):
    ...     import sklearn
    """
    try:
        yield
    except ImportError as error:
        error.add_note(f"{who} needs {library}: {install_command(extra)}")
        raise
