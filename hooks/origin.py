"""A check that the package `trainer` is ours: one beside a script would hide it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def check_package_origin(name: str) -> None:
    """Check, without importing it, that a package is the one installed with `hooks`.

    Python looks in the folder of the script first. A `trainer.py` or a folder `trainer` there would
    be imported instead, and fail with an unclear error.

    Raises:
        ImportError: Python finds another file or folder of this name.
    """
    ours = Path(__file__).resolve().parent.parent / name
    found = _find_package(name)
    if found is not None and (ours / "__init__.py").exists() and found.resolve() != ours:
        raise ImportError(
            f"the package 'hooks' needs the package {name!r} that was installed with it, {ours}; "
            f"but Python finds {found}, which hides it: rename that",
            name=name,
            path=str(found),
        )


def _find_package(name: str) -> Path | None:
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
