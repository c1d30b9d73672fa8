"""The command line itself: its commands and exit statuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.commands.registry import COMMANDS
from trainer.commands.terminal.calling import (
    CommandError,
    import_command,
    merge_options,
    run_command,
)

ROOT = Path(__file__).parents[4]
MAIN = [sys.executable, "-m", "entracte"]


def shout(*, words: tuple[str, ...] = (), loud: bool = False) -> int:
    """Shout words.

    Args:
        words: to shout.
        loud: or not so.
    """
    print(words, loud)
    return 7 if loud else 0


def refuse() -> None:
    """Refuse."""
    raise CommandError("not today")


def stop() -> None:
    """Be stopped."""
    raise KeyboardInterrupt


OWN = {name: f"{__name__}:{name}" for name in ("shout", "refuse", "stop")}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_exists_and_has_help(name):
    command = import_command(COMMANDS[name])
    assert command.__doc__
    assert run_command(COMMANDS, [name, "--help"]) == 0


def test_the_overview_lists_each_command(capsys):
    assert run_command(OWN, []) == 0
    assert run_command(OWN, ["--help"]) == 0
    out = capsys.readouterr().out
    assert out.count("Shout words.") == 2


def test_the_exit_status_is_the_result_of_the_command(capsys):
    assert run_command(OWN, ["shout", "--loud"]) == 7
    assert run_command(OWN, ["stop"]) == 130


def test_a_command_error_is_printed_without_a_traceback(capsys):
    assert run_command(OWN, ["refuse"]) == 2
    assert capsys.readouterr().err == "entracte: refuse: not today\n"


def test_wrong_words_return_status_2(capsys):
    assert run_command(OWN, ["shout", "--laud"]) == 2
    assert run_command(OWN, ["fly\x1b[2J"]) == 2
    err = capsys.readouterr().err
    assert "--laud" in err
    assert r"no command 'fly\x1b[2J' (there is: shout, refuse, stop)" in err


def test_a_repeated_option_keeps_all_values(capsys):
    assert run_command(OWN, ["shout", "--words", "a", "--loud", "--words=b", "c"]) == 7
    assert capsys.readouterr().out == "('a', 'b', 'c') True\n"
    assert merge_options(["x", "--a", "1", "y", "--a", "2"]) == ["x", "--a", "1", "y", "2"]


@pytest.mark.parametrize("words", [["--store", "a", "--store", "b"], ["--store=a", "--store=b"]])
def test_an_option_of_one_value_cannot_be_repeated(words, store, capsys):
    assert run_command(COMMANDS, ["runs", *words]) == 2
    assert "give --store once, it takes one value; got a, b" in capsys.readouterr().err
    assert run_command(COMMANDS, ["runs", "--json", "--json"]) == 0


def test_a_missing_argument_is_named(capsys):
    assert run_command(COMMANDS, ["show"]) == 2
    assert "RUN" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("absent", "extras"),
    [(["tyro"], "config"), (["rich"], "console"), (["tyro", "rich"], "config,console")],
)
def test_a_missing_library_is_named_with_its_extra(absent, extras, monkeypatch, capsys):
    for library in absent:
        monkeypatch.setitem(sys.modules, library, None)
    assert run_command(OWN, ["shout"]) == 2
    assert f'pip install "entracte[{extras}]"' in capsys.readouterr().err


def test_a_process_lists_runs_in_any_encoding(store):
    store.register("größe", directory="/g", host="h", pid=1, time=0.0)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    ran = subprocess.run(
        [*MAIN, "runs"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "alpha" in ran.stdout
    assert r"gr\xf6\xdfe" in ran.stdout


def test_a_closed_pipe_prints_no_traceback(store):
    reader, writer = os.pipe()
    os.close(reader)
    ran = subprocess.run(
        [*MAIN, "show", "alpha", "--json"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=writer,
        stderr=subprocess.PIPE,
        timeout=60,
    )
    os.close(writer)
    assert (ran.returncode, ran.stderr) == (1, b"")
