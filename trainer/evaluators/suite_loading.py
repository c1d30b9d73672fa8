"""Load an object from a file, named on a command line as FILE:NAME."""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from trainer.checks.paths import to_absolute_path
from trainer.checks.suggestions import suggest_and_list
from trainer.evaluators.suite import Suite


def load_named(named: str) -> Any:
    """Load a Python file, and return what it defines under a name.

    The file runs as a module, not as a script: code below `if __name__ == "__main__"` is left out.
    It can import modules beside it, as a script can.

    Args:
        named: `FILE:NAME`, such as `examples/digits.py:suite`.

    Raises:
        ValueError: the text does not have this form.
        FileNotFoundError: the file does not exist.
        AttributeError: the file does not define the name.
        Exception: what the file raises, with a note.
    """
    file, colon, name = named.rpartition(":")
    if not (colon and name.isidentifier() and file.endswith(".py")):
        raise ValueError(f"give FILE:NAME, such as examples/digits.py:suite; got {named!r}")
    path = to_absolute_path(file, "FILE:NAME")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}, in which {name!r} should be")
    module = f"entracte_loaded_{path.stem}_{abs(hash(path)):x}"
    if module not in sys.modules:
        _load(module, path)
    try:
        return getattr(sys.modules[module], name)
    except AttributeError as error:
        known = suggest_and_list(name, _own_names(module))
        raise AttributeError(f"{path} defines no {name!r}{known}") from error


def load_suites(*named: str) -> tuple[Suite, ...]:
    """Load suites by `FILE:NAME`, where NAME is a `Suite`, several, or a function returning them.

    Raises:
        TypeError: NAME is something else.
        Exception: as `load_named`.

    >>> import tempfile
    >>> text = '''
    ... import jax, numpy as np
    ... from trainer import TrainState, data, evaluation
    ... from trainer.evaluators import Suite
    ... source = data.Arrays({"inputs": np.arange(5.0)}, batch_size=2)
    ... def suite():
    ...     start = TrainState.create(params=np.float32(0), rng=jax.random.key(0))
    ...     return Suite("mean", start, evaluation(lambda state, batch: {"x": batch["inputs"]},
    ...                                            source))
    ... '''
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "mine.py").write_text(text)
    ...     load_suites(f"{folder}/mine.py:suite")
    (Suite('mean', val),)
    """
    return tuple(suite for one in named for suite in _suites(one))


def _load(module: str, path: Path) -> None:
    spec = importlib.util.spec_from_file_location(module, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[module] = importlib.util.module_from_spec(spec)
    if os.fspath(path.parent) not in sys.path:
        sys.path.insert(0, os.fspath(path.parent))
    try:
        spec.loader.exec_module(sys.modules[module])
    except BaseException as error:
        del sys.modules[module]
        error.add_note(f"in loading {path}")
        raise


def _own_names(module: str) -> list[str]:
    """List what a file defines, without what it imports."""
    return [
        name
        for name, value in vars(sys.modules[module]).items()
        if not (name.startswith("_") or inspect.ismodule(value))
        if not (inspect.isroutine(value) or inspect.isclass(value)) or value.__module__ == module
    ]


def _suites(named: str) -> list[Suite]:
    found = load_named(named)
    if callable(found) and not isinstance(found, type):
        found = found()
    suites = list(found) if isinstance(found, Iterable) else [found]
    if not suites or not all(isinstance(suite, Suite) for suite in suites):
        raise TypeError(
            f"{named} must be a trainer.evaluators.Suite, a sequence of them, or a function that "
            f"makes such; got {found!r:.100}"
        )
    return suites
