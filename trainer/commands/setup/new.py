"""The command `new`: write a small project to begin with."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Annotated

import tyro

from trainer.commands.terminal.calling import CommandError
from trainer.host.escaping import escape_text
from trainer.host.extras import install_command

TEMPLATE = Path(__file__).with_name("project")
"""The files of a project; the word PROJECT in its README stands for the name."""

HIDING = ("entracte", "hooks", "models", "trainer")
"""Names of folders that would hide a package from scripts beside them."""

LIBRARIES = ("pytest", "rich", "sklearn", "tyro", "yaml")
"""What the project's commands need besides the library."""

ProjectName = Annotated[str, tyro.conf.arg(metavar="NAME")]


def new(name: ProjectName, /) -> None:
    """Write a small project: a script that trains, its settings, a hook of your own, its test.

    Args:
        name: of the project and of its folder, which must not exist yet.
    """
    folder = Path(name)
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
        raise CommandError(
            "the name of a project has letters, digits, - and _, and begins with a letter; got "
            f"{escape_text(name)!r}"
        )
    if name in HIDING:
        raise CommandError(
            f"a folder named {name} would hide the package {name} from scripts beside it: choose "
            "another name"
        )
    try:
        folder.mkdir()
        for file in (file for file in TEMPLATE.iterdir() if file.is_file()):
            text = file.read_text(encoding="utf-8")
            if file.name == "README.md":
                text = text.replace("PROJECT", name)
            (folder / file.name).write_text(text, encoding="utf-8")
    except FileExistsError as error:
        raise CommandError(f"{name} exists here already: choose another name") from error
    except OSError as error:
        raise CommandError(f"{name} cannot be written: {escape_text(error)}") from error
    print(_describe_next_commands(name))


def _describe_next_commands(name: str) -> str:
    missing = [library for library in LIBRARIES if importlib.util.find_spec(library) is None]
    install = f"  {install_command('commands', 'examples')} pytest\n" if missing else ""
    return (
        f"{name} has a script, its settings, a hook and its test; README.md says more. Next:\n\n"
        f"  cd {name}\n{install}"
        "  python train.py --config config.yaml    # trains; again, and it resumes\n"
        "  python -m pytest                        # tests the hook\n"
        "  entracte show digits                    # shows curves, scores, checkpoints"
    )
