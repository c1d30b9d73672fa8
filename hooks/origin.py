"""A check that the package `trainer` is ours: one beside a script would hide it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def check_package_origin(name: str) -> None:
    """Check, without importing it, that a package is the one installed with `hooks`.

    Python looks in the folder of the script first. A `trainer.py` or a folder `trainer` there would
    be imported instead, and fail with an unclear error. `entracte.hooks` needs no check.

    Raises:
        ImportError: Python finds another file or folder of this name.
    """
    if not __name__.startswith("hooks."):
        return
    ours = Path(__file__).resolve().parent.parent / name
    if (module := sys.modules.get(name)) is not None:
        places = [*getattr(module, "__path__", ()), getattr(module, "__file__", None)]
    else:
        spec = importlib.util.find_spec(name)
        places = [*(spec.submodule_search_locations or ()), spec.origin] if spec else [None]
    found = places[0]  # the folder of a package, or the file of a module
    if found and (ours / "__init__.py").exists() and Path(found).resolve() != ours:
        raise ImportError(
            f"the package 'hooks' needs the package {name!r} that was installed with it, {ours}; "
            f"but Python finds {found}, which hides it: rename that, or write "
            "`from entracte import hooks, trainer`",
            name=name,
            path=found,
        )
