"""Programs for other trainers in the tutorial: where a library is installed, they run."""

import ast
import importlib
import importlib.util
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "tutorials" / "migrating.md").read_text()
PROGRAMS = {
    re.match(r"# (\w+)\.py\n", text)[1]: text
    for text in map(
        textwrap.dedent, re.findall(r"^    ```py\n(.*?)^    ```", PAGE, re.DOTALL | re.MULTILINE)
    )
}
LIBRARIES = {"lightning": ("lightning", "torch"), "keras": ("keras",)}
LIBRARIES["transformers"] = ("transformers", "torch", "accelerate")


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_for_another_trainer_runs(name, tmp_path):
    program = PROGRAMS[name]
    ast.parse(program)
    needed = LIBRARIES[name.rpartition("_")[2]]
    if missing := [library for library in needed if not importlib.util.find_spec(library)]:
        pytest.skip(f"{', '.join(missing)} not installed")
    ran = subprocess.run(
        [sys.executable, "-c", program.replace("epochs=20", "epochs=2")],
        cwd=tmp_path,
        env={**os.environ, "KERAS_BACKEND": "jax"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    if name.startswith("digits"):
        assert float(re.search(r"(0\.\d+)\D*$", ran.stdout)[1]) > 0.6, ran.stdout


def test_the_page_shows_each_program_for_three_trainers():
    assert sorted(PROGRAMS) == sorted(
        f"{what}_{library}" for what in ("digits", "stopping") for library in LIBRARIES
    )


def test_what_the_table_names_exists():
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and line.count(" | ") == 4]
    assert len(rows) > 20
    names = re.findall(
        r"\b(trainer|hooks|models|data|losses|measures)((?:\.\w+)+)", " ".join(rows[1:])
    )
    names = {(root, path) for root, path in names if (root, path) != ("trainer", ".predict")}
    assert len(names) > 10
    for root, path in names:
        thing = importlib.import_module(
            root if root in ("trainer", "hooks", "models") else "trainer"
        )
        for part in ([] if root in ("trainer", "hooks", "models") else [root]) + path.split(".")[
            1:
        ]:
            thing = getattr(thing, part)
