"""What tests of examples share: a script as a module."""

import importlib.util
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module", autouse=True)
def _compiled_once(compiled_once):
    """Examples share what they compile."""


@pytest.fixture(scope="module")
def script():
    """Build a function that imports an example by its name."""
    imported = []

    def load(name):
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        imported.append(name)
        spec.loader.exec_module(module)
        return module

    yield load
    for name in imported:
        del sys.modules[name]
