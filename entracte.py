"""The three packages, also where a file or folder of yours hides one of them.

Python looks in the folder of the script first: `import models` finds a folder `models` there
instead of the package. `from entracte import models` finds the package, and both can be used side
by side. A package that nothing hides is the one that `import models` finds; a hidden one is loaded
as `entracte.models`, once. Where nothing hides them, write `import hooks, models, trainer`.

>>> import models
>>> from entracte import models as same
>>> same is models
True
"""

from __future__ import annotations

import builtins
import functools
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = Path(__file__).resolve().parent
"""The folder of the three packages."""

NEEDS = {"hooks": ("trainer",), "models": (), "trainer": ()}
"""The packages, and those that each imports."""

COMMANDS = "trainer.commands."
"""Beginning of the names of modules that import all three."""

__path__: list[str] = []  # a hidden package is a submodule, which only `_Finder` finds


def __getattr__(name: str) -> Any:
    if name not in NEEDS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(_resolve(name))


def main() -> int:
    """Run the command line, and return its exit status."""
    command_line = importlib.import_module(f"{_resolve('trainer')}.__main__")
    status: int = command_line.main()
    return status


@functools.cache
def _resolve(package: str) -> str:
    """Return the name under which a package is imported; decided at its first use."""
    hidden = any(_is_hidden(name) for name in (package, *NEEDS[package]))
    return f"{__name__}.{package}" if hidden else package


def _is_hidden(package: str) -> bool:
    """Return whether Python finds another file or folder of this name."""
    if (module := sys.modules.get(package)) is not None:
        places = [*getattr(module, "__path__", ()), getattr(module, "__file__", None)]
    else:
        spec = importlib.util.find_spec(package)
        places = [*(spec.submodule_search_locations or ()), spec.origin] if spec else [None]
    return places[0] is None or Path(places[0]).resolve() != FOLDER / package


class _Loader(SourceFileLoader):
    """Runs a module whose imports find the hidden packages.

    The functions of the module keep its builtins, so imports within them do the same.
    """

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": _import}
        super().exec_module(module)


class _Finder:
    """Finds the modules of hidden packages, as `entracte.models.cnn`, and those of the commands.

    These import `hooks` and `models`, one of which may be hidden while `trainer` is not, or become
    so: a command may load a file of the user, and find modules beside it.
    """

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        parent, _, rest = name.partition(".")
        package = rest.partition(".")[0]
        if name.startswith(COMMANDS) and _resolve("trainer") == "trainer":
            return _find_module(name, path)
        if parent != __name__ or package not in NEEDS:
            return None
        if _resolve(package) == package:
            raise ModuleNotFoundError(
                f"nothing hides the package {package!r} here: import {rest} instead of {name}, or "
                f"write `from {__name__} import {package}`",
                name=name,
            )
        return _find_module(name, path or [str(FOLDER)])


def _find_module(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    spec = PathFinder.find_spec(name, path)
    if spec is not None and spec.origin is not None:
        spec.loader = _Loader(name, spec.origin)
    return spec


def _import(
    name: str,
    globals: dict[str, Any] | None = None,
    locals: dict[str, Any] | None = None,
    fromlist: Sequence[str] = (),
    level: int = 0,
) -> ModuleType:
    """Import as the built-in function does, but the hidden packages by their names here."""
    package, dot, rest = name.partition(".")
    if level == 0 and package in NEEDS and (found := _resolve(package)) != package:
        if not fromlist:  # `import models.cnn` defines `models`
            importlib.import_module(f"{found}{dot}{rest}")
            return sys.modules[found]
        name = f"{found}{dot}{rest}"
    return builtins.__import__(name, globals, locals, fromlist, level)


if __name__ == "__main__":  # as `python -m entracte`: another copy of the module that others import
    sys.exit(importlib.import_module("entracte").main())
sys.meta_path.insert(0, _Finder)
