"""Completion in real shells, and what it knows of the commands."""

import os
import re
import select
import shutil
import subprocess
import time

import pytest

from trainer.commands.registry import COMMANDS
from trainer.commands.setup.completion import write_script
from trainer.commands.terminal.calling import import_command, run_command
from trainer.commands.terminal.options import read_options

CASES = {
    "entracte sho": "show",
    "entracte ": " ".join([*COMMANDS, "--help"]),
    "entracte show ": "digits digits-2",
    "entracte show --json digits-": "digits-2",
    "entracte show --store other ": "third",
    "entracte show digits --m": "--metrics",
    "entracte runs --state f": "finished failed",
    "entracte runs --state = fi": "finished",
    "entracte runs --state failed fi": "finished",
    "entracte runs ": "--store --state --where --sort --mode --metrics --json --help",
    "entracte evaluate --runs digits-": "digits-2",
    "entracte export digits --formats csv p": "parquet params",
    "entracte simulate digits --mode ": "min max",
    "entracte simulate digits --with ": "",  # files, by the shell
    "entracte new ": "--help",
}
"""The words before the cursor, and what is proposed."""

BASH = """
. "$1"; shift
for line in "$@"; do
    read -ra COMP_WORDS <<< "$line"
    [[ $line == *" " ]] && COMP_WORDS+=("")
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    _entracte
    echo "${COMPREPLY[*]}"
done
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with recorded runs, a folder that is no run, and the script."""
    folder = tmp_path_factory.mktemp("completion")
    for run in ("runs/digits", "runs/digits-2", "other/third"):
        (folder / run).mkdir(parents=True)
        (folder / run / "queue.jsonl").touch()
    (folder / "runs" / "compiled").mkdir()
    commands = {name: import_command(place) for name, place in COMMANDS.items()}
    (folder / "script.sh").write_text(write_script(commands))
    return folder


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes(folder):
    environment = {key: value for key, value in os.environ.items() if key != "ENTRACTE_STORE"}
    run = subprocess.run(
        ["bash", "--norc", "-c", BASH, "bash", "script.sh", *CASES],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.stderr == ""
    assert dict(zip(CASES, run.stdout.split("\n"), strict=False)) == CASES


@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh")
def test_zsh_completes(folder):
    terminal, inner = os.openpty()
    shell = subprocess.Popen(
        ["zsh", "-f", "-i"],
        cwd=folder,
        env=os.environ | {"TERM": "dumb", "ZDOTDIR": str(folder)},
        stdin=inner,
        stdout=inner,
        stderr=inner,
        start_new_session=True,
    )
    os.close(inner)
    try:
        os.write(terminal, b"autoload -Uz compinit; compinit -u -D; . ./script.sh\n")
        os.write(terminal, b"PS1='rea''dy> '\n")
        _read_until(terminal, "ready> ")
        for begun, completed in [("show digits-", "show digits-2 "), ("runs --js", "runs --json ")]:
            os.write(terminal, f"entracte {begun}\t".encode())
            _read_until(terminal, f"entracte {completed}")
            os.write(terminal, b"\x15")  # clears the line
    finally:
        shell.kill()
        shell.wait()
        os.close(terminal)


def _read_until(terminal, text, seconds=300):
    seen, end = "", time.monotonic() + seconds
    while text not in seen:
        assert time.monotonic() < end, seen
        if select.select([terminal], [], [], 1)[0]:
            seen += os.read(terminal, 65536).decode(errors="replace")


@pytest.mark.parametrize("name", COMMANDS)
def test_it_knows_the_options_that_help_shows(name, capsys):
    command = import_command(COMMANDS[name])
    assert run_command(COMMANDS, [name, "--help"]) == 0
    shown = re.findall(r"^[│| ]*(?:-h, )?(--[a-z][a-z-]*)", capsys.readouterr().out, re.MULTILINE)
    assert {*shown} == {*read_options(command), "--help"}


def test_the_command_prints_the_script(capsys, folder):
    assert run_command(COMMANDS, ["completion"]) == 0
    assert capsys.readouterr().out == (folder / "script.sh").read_text()
