"""The arrows between the layers, and the public faces."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("trainer", "hooks", "models")
FORBIDDEN = {"trainer": {"hooks", "models"}, "models": {"hooks", "trainer"}, "hooks": {"models"}}
MEETING_POINTS = (ROOT / "trainer" / "__main__.py", ROOT / "trainer" / "commands")
"""The command line, which alone may import hooks."""


def _imports(file):
    """Top-level names of the packages that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def _files(package):
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package):
    files = [
        file
        for file in _files(package)
        if not any(file.is_relative_to(place) for place in MEETING_POINTS)
    ]
    assert files
    for file in files:
        tops = {name.split(".")[0] for name in _imports(file)}
        assert not tops & FORBIDDEN[package], f"{file.relative_to(ROOT)} imports against the layers"
        assert not tops & {"examples", "benchmarks", "tests"}


def test_only_the_checkpoints_know_orbax():
    knowing = {
        file.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for file in _files(package)
        if any(name.split(".")[0] == "orbax" for name in _imports(file))
    }
    assert len(knowing) == 1, knowing


@pytest.mark.parametrize("name", [*PACKAGES, "trainer.data", "trainer.checkpoints"])
def test_a_public_face_is_sorted_complete_and_documented(name):
    module = importlib.import_module(name)
    assert module.__all__ == sorted(module.__all__)
    for export in module.__all__:
        thing = getattr(module, export)
        assert thing.__doc__, f"{name}.{export} has no docstring"


@pytest.mark.parametrize("package", PACKAGES)
def test_types_are_shipped(package):
    assert (ROOT / package / "py.typed").exists()


@pytest.mark.parametrize("package", [*PACKAGES, "examples", "benchmarks"])
def test_a_file_has_one_subject(package):
    for file in _files(package):
        assert len(file.read_text().splitlines()) <= 370, f"{file.relative_to(ROOT)} is too long"
