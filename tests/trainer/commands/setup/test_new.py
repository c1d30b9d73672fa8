"""A new project trains, its tests pass, and it is lint-clean."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.commands.registry import COMMANDS
from trainer.commands.terminal.calling import run_command

ROOT = Path(__file__).parents[4]

USE = """
import pytest, runpy, sys
assert pytest.main(["-q", "-p", "no:cacheprovider"]) == 0
for epochs in ("1", "2"):
    sys.argv = ["train.py", "--config", "config.yaml", "--epochs", epochs]
    runpy.run_path("train.py", run_name="__main__")
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_trains_and_tests_green_as_it_stands(here, capsys):
    assert run_command(COMMANDS, ["new", "my-digits"]) == 0
    said = capsys.readouterr().out
    folder = here / "my-digits"
    names = {file.name for file in folder.iterdir()}
    assert names == {"train.py", "config.yaml", "my_hooks.py", "test_my_hooks.py", "README.md"}
    assert (folder / "README.md").read_text().startswith("# my-digits\n")
    for command in ("cd my-digits", "python train.py --config config.yaml", "python -m pytest"):
        assert command in said
    run = subprocess.run(
        [sys.executable, "-c", USE],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "3 passed" in run.stdout
    assert "gap/accuracy" in run.stdout
    assert "epoch 2/2" in run.stdout
    assert "resuming from epoch 1" in run.stderr
    assert (folder / "runs" / "digits" / "config.yaml").exists()
    for words in (["check", "--select=E,F,I,UP,B,C4,SIM,PT,RET,N,D1"], ["format", "--check"]):
        lint = [sys.executable, "-m", "ruff", *words, "--isolated", "."]
        linted = subprocess.run(lint, cwd=folder, capture_output=True, text=True, timeout=60)
        assert linted.returncode == 0, linted.stdout


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "has letters, digits, - and _, and begins with a letter; got ''"),
        ("../up", "begins with a letter"),
        ("a/b", "begins with a letter"),
        ("a\n", "begins with a letter"),
        ("models", "would hide the package models"),
        ("there", "there exists here already"),
    ],
)
def test_a_name_that_cannot_be_is_refused(here, capsys, name, problem):
    (here / "there").mkdir()
    assert run_command(COMMANDS, ["new", name]) == 2
    assert problem in capsys.readouterr().err
    assert [file.name for file in here.iterdir()] == ["there"]
    assert [*(here / "there").iterdir()] == []
