"""The arrows in docs/explanation/architecture.md are those of the imports, and go one way."""

import ast
import graphlib
import importlib
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "explanation" / "architecture.md").read_text()
PACKAGES = ("trainer", "hooks", "models")
FACES = tuple(f"{package}.__init__" for package in PACKAGES)
"""Re-exports of what is public, from all rooms."""

TEMPLATE = "trainer.commands.setup.project."
"""Files that `entracte new` copies."""


def get_room(module):
    """Return the folder of a module, or the module itself at the top of its package."""
    return ".".join(module.split(".")[: 1 if module.startswith("models") else 2])


def find_definition(module, name):
    """Return the module in which an imported name is defined; a face only passes it on."""
    if (ROOT / module.replace(".", "/") / f"{name}.py").exists():
        return f"{module}.{name}"
    if module in PACKAGES:
        thing = getattr(importlib.import_module(module), name)
        return getattr(thing, "__module__", None) or getattr(thing, "__name__", module)
    return module


def iter_imports(file):
    """Yield the modules of the three packages that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (find_definition(node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def read_code():
    """Return the rooms that each room imports."""
    arrows = {}
    for file in (file for package in PACKAGES for file in (ROOT / package).rglob("*.py")):
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        if module not in FACES and not module.startswith(TEMPLATE):
            rooms = arrows.setdefault(get_room(module), set())
            rooms |= {get_room(m) for m in iter_imports(file) if m.split(".")[0] in PACKAGES}
    return {room: targets - {room} for room, targets in arrows.items()}


def read_page():
    """Return the arrows of the page."""
    (block,) = re.findall(r"^```arrows\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    lines = (line.split(" -> ") for line in block.splitlines())
    return {room.strip(): set(targets[0].split()) if targets else set() for room, *targets in lines}


def test_the_arrows_of_the_page_are_those_of_the_imports():
    code, page = read_code(), read_page()
    assert page.keys() == code.keys()
    for room, targets in code.items():
        assert page[room] == targets, f"{room} in docs/explanation/architecture.md"


def test_no_arrows_form_a_circle():
    tuple(graphlib.TopologicalSorter(read_page()).static_order())


def test_the_page_names_files_that_exist():
    files = re.findall(r"`((?:trainer|hooks|models|tests|docs)/[\w/]+\.(?:py|md))", PAGE)
    assert len(files) > 12
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_functions_that_the_page_names_are_where_it_says():
    for file, name in re.findall(r"`([\w/]+)\.py::(\w+)", PAGE):
        assert hasattr(importlib.import_module(file.replace("/", ".")), name), f"{file}: {name}"
