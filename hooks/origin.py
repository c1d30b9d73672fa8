"""Where the package `trainer` comes from: one beside a script would hide the one that is meant."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def check_package_origin(name: str) -> None:
    """Check, without importing it, that a package is the one that was installed with this one.

    Python looks first in the folder of the script, so that a `trainer.py` there, or a folder
    `trainer`, is found in its place, and fails far from here.

    Raises:
        ImportError: another file or folder has the name.
    """
    ours = Path(__file__).resolve().parent.parent / name
    found = _place(name)
    if found is not None and (ours / "__init__.py").exists() and found.resolve() != ours:
        raise ImportError(
            f"the package 'hooks' needs the package {name!r} that was installed with it, {ours}; "
            f"but Python finds {found}, which hides it: rename that",
            name=name,
            path=str(found),
        )


def _place(name: str) -> Path | None:
    """Return the file of a module, or the folder of a package, that has the name."""
    if (module := sys.modules.get(name)) is not None:
        origin, folders = getattr(module, "__file__", None), getattr(module, "__path__", ())
    else:
        spec = importlib.util.find_spec(name)
        if spec is None:
            return None
        origin, folders = spec.origin, spec.submodule_search_locations or ()
    if folders := list(folders):
        return Path(folders[0])
    return None if origin is None else Path(origin)
