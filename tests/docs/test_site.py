"""The site builds without a warning, and its reference has every public name."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import hooks
import hooks.testing
import models
import trainer
import trainer.checkpoints
import trainer.evaluators
import trainer.rl

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"
OTHERS = (trainer.rl, trainer.checkpoints, trainer.evaluators, hooks.testing)


def names_of(module: ModuleType) -> list[str]:
    """What a module offers: `__all__`, or what it defines."""
    own = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == module.__name__
    ]
    return list(getattr(module, "__all__", own))


def public_names() -> dict[str, object]:
    """Each public value, by the first of its names: `trainer.Hook`, not `hooks.Hook`."""
    found: dict[str, object] = {}
    packages = [(module.__name__, module) for module in (trainer, hooks, models, *OTHERS)]
    for path, module in packages:
        for name in names_of(module):
            value = getattr(module, name)
            if inspect.ismodule(value):
                packages.append((f"{path}.{name}", value))
            elif not any(value is known for known in found.values()):
                found[f"{path}.{name}"] = value
    return found


def test_the_reference_has_every_public_name_once():
    pages = "".join(page.read_text() for page in REFERENCE.glob("*.md"))
    shown = re.findall(r"^::: (\S+)", pages, re.MULTILINE)
    assert sorted(shown) == sorted(public_names())


def test_each_page_is_in_the_navigation_once():
    navigation = re.findall(r'"([\w/]+\.md)"', (ROOT / "zensical.toml").read_text())
    pages = [page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")]
    assert sorted(navigation) == sorted(pages)


def test_the_front_page_of_the_guides_has_each_under_its_title():
    guides = ROOT / "docs" / "how_to"
    front = (guides / "index.md").read_text()
    for page in guides.rglob("*/*.md"):
        title = page.read_text().partition("\n")[0].removeprefix("# ")
        assert f"- [{title}]({page.relative_to(guides).as_posix()})" in front


def test_the_site_builds_without_a_warning():
    """Links, anchors and docstrings: a warning of any of them ends the build."""
    command = [str(Path(sys.executable).with_name("zensical")), "build", "--clean", "--strict"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environ = {**os.environ, "PATH": path, "NO_COLOR": "1"}
    built = subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120
    )
    text = built.stdout + built.stderr
    assert built.returncode == 0, text
    assert "griffe:" not in text, text
    page = (ROOT / "site" / "index.html").read_text()
    loaded = re.findall(r"<(?:link|script|img)[^>]+=[\"']?https?:[^>]*>", page)
    assert not loaded, "a page must load nothing from elsewhere"
    headings = "".join(page.read_text() for page in (ROOT / "site" / "reference").glob("*.html"))
    modules = re.findall(r'<h\d id="([\w.]+)\.(\w+)\.\2"', headings)
    assert not modules, "a page shows a module in the place of what it defines"
