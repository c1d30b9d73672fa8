"""The layers and rooms: their arrows, sizes and names, and the public faces."""

import ast
import importlib
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("trainer", "hooks", "models")
FORBIDDEN = {
    "trainer": {"hooks", "models", "entracte"},
    "models": {"hooks", "trainer", "entracte"},
    "hooks": {"models", "entracte"},
}
MEETING_POINTS = (ROOT / "trainer" / "__main__.py", ROOT / "trainer" / "commands")
"""The command line, which alone may import hooks and models."""

TEMPLATE = ROOT / "trainer" / "commands" / "setup" / "project"
"""Files that `entracte new` copies."""

MAX_LINES = {"trainer": 300, "hooks": 300, "models": 300, "examples": 300, "benchmarks": 350}
MAX_ENTRIES, MAX_PARAMETERS = 20, 8

MANY_PARAMETERS = {
    # A setting each, as a configuration file or a command line names it.
    "hooks.monitoring.showing_samples.show_samples",
    "hooks.recording_replays.record_replays",
    "models.language.captioner.captioner",
    "models.language.generating.generate",
    "models.language.sampling.sample",
    "models.language.transformer.transformer",
    "trainer.data.conversations.chat.chat",
    "trainer.loop.fit.fit",
    "trainer.commands.evaluate.evaluate",
    "trainer.commands.export.export",
}


def _files(package):
    return sorted(
        file for file in (ROOT / package).rglob("*.py") if not file.is_relative_to(TEMPLATE)
    )


def _name(file):
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {_name(file): file for package in PACKAGES for file in _files(package)}


def _imports(file):
    """Return the modules, and names in modules, that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _imported_modules(file):
    """Return the modules of ours that a file imports, those of a package's face included."""
    names = _imports(file)
    return {name if name in MODULES else name.rpartition(".")[0] for name in names} & {*MODULES}


def _room(module):
    """Return the room of a module: the second part of its path; a file in no folder is its own."""
    return ".".join(module.split(".")[:2]) if "." in module else f"{module}.__init__"


def _find_circles(graph):
    """Return the nodes on circles, and between them: remove the ends of all paths, repeatedly."""
    graph = {node: set(after) - {node} for node, after in graph.items()}
    while True:
        reached = set().union(*graph.values())
        inner = {node for node, after in graph.items() if after and node in reached}
        if inner == graph.keys():
            return inner
        graph = {node: graph[node] & inner for node in inner}


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


@pytest.mark.parametrize("place", [lambda module: module, _room], ids=["modules", "rooms"])
def test_imports_have_no_circle(place):
    graph = defaultdict(set)
    for module, file in MODULES.items():
        graph[place(module)] |= {place(other) for other in _imported_modules(file)}
    assert not _find_circles(graph)


def test_only_the_checkpoints_know_orbax():
    knowing = {
        file.relative_to(ROOT).as_posix()
        for file in MODULES.values()
        if any(name.split(".")[0] == "orbax" for name in _imports(file))
    }
    assert len(knowing) <= 1, knowing


@pytest.mark.parametrize("name", [*PACKAGES, "trainer.data", "trainer.checkpoints"])
def test_a_public_face_is_sorted_complete_and_documented(name):
    module = importlib.import_module(name)
    assert module.__all__ == sorted(module.__all__, key=lambda one: (not one.isupper(), one))
    for export in module.__all__:
        thing = getattr(module, export)
        assert thing.__doc__, f"{name}.{export} has no docstring"


@pytest.mark.parametrize("package", PACKAGES)
def test_types_are_shipped(package):
    assert (ROOT / package / "py.typed").exists()


@pytest.mark.parametrize("package", MAX_LINES)
def test_a_file_has_one_subject(package):
    long = {_name(file): len(file.read_text().splitlines()) for file in _files(package)}
    assert {name: lines for name, lines in long.items() if lines > MAX_LINES[package]} == {}


def test_a_folder_can_be_overlooked():
    folders = {file.parent for file in MODULES.values()}
    entries = {
        folder.relative_to(ROOT).as_posix(): [*folder.glob("[!_]*"), *folder.glob("__*__.py")]
        for folder in folders
    }
    assert {name for name, found in entries.items() if len(found) > MAX_ENTRIES} == set()


def test_a_module_has_a_name_of_its_own():
    found = defaultdict(list)
    for module, file in MODULES.items():
        if file.stem != "__init__":
            found[file.stem].append(module)
    assert {name: modules for name, modules in found.items() if len(modules) > 1} == {}


def test_a_function_has_few_parameters():
    many = set()
    for module, file in MODULES.items():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef):
                names = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                names += filter(None, [node.args.vararg, node.args.kwarg])
                if (
                    len([name for name in names if name.arg not in ("self", "cls")])
                    > MAX_PARAMETERS
                ):
                    many.add(f"{module}.{node.name}")
    assert many <= MANY_PARAMETERS


def test_no_two_classes_share_a_name():
    homes = defaultdict(list)
    for module, file in MODULES.items():
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(module)
    assert {name: places for name, places in homes.items() if len(places) > 1} == {}
