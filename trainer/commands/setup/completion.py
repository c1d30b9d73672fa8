"""The command `completion`: print a script by which shells complete this command line."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from trainer.commands.lookup.stores import DEFAULT, VARIABLE, RunName, RunNames
from trainer.commands.registry import COMMANDS
from trainer.commands.terminal.calling import import_command
from trainer.commands.terminal.options import list_choices, read_options, takes_one
from trainer.runs.run_directory import QUEUE

SCRIPT = Path(__file__).with_name("completion.sh")
"""What does not depend on the commands; the words in capitals are replaced."""


def completion() -> None:
    """Print a script that completes commands, options, their values and names of runs.

    It serves bash and zsh, and starts no Python when it completes. To turn it on, bash:
    entracte completion > ~/.entracte_completion; echo '. ~/.entracte_completion' >> ~/.bashrc;
    zsh: the same with ~/.zshrc. Write it anew after an update.
    """
    print(write_script({name: import_command(place) for name, place in COMMANDS.items()}), end="")


def write_script(commands: dict[str, Callable[..., Any]]) -> str:
    """Write the script for commands by name."""
    options = {name: [*read_options(command), "--help"] for name, command in commands.items()}
    values = [line for name, command in commands.items() for line in _list_values(name, command)]
    single = [
        f"'{name} {option}'"
        for name, command in commands.items()
        for option, annotation in read_options(command).items()
        if takes_one(annotation)
    ]
    words = {
        "COMMANDS": " ".join([*commands, "--help"]),
        "OPTIONS": "\n".join(
            f"        {name}) echo '{' '.join(options[name])}' ;;" for name in options
        ),
        "SINGLE": "|".join(single),
        "VALUES": "\n".join(f"        {line} ;;" for line in values),
        "VARIABLE": VARIABLE,
        "DEFAULT": DEFAULT,
        "QUEUE": QUEUE,
    }
    script = SCRIPT.read_text(encoding="utf-8")
    for word, text in words.items():
        script = script.replace(f"@{word}@", text)
    return script


def _list_values(name: str, command: Callable[..., Any]) -> Iterator[str]:
    """List cases of the shell: what may follow the command itself, and each of its options."""
    arguments = [
        parameter.annotation
        for parameter in inspect.signature(command, eval_str=True).parameters.values()
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY
    ]
    options = read_options(command)
    takes_runs = any(annotation in (RunName, RunNames) for annotation in arguments)
    flags = [option for option, annotation in options.items() if annotation is bool]
    before = "|".join(f"'{name} {option}'" for option in ("", *flags))
    yield f"{before}) {'_entracte_runs' if takes_runs else f'_entracte_options {name}'}"
    for option, annotation in options.items():
        if annotation in (RunName, RunNames):
            yield f"'{name} {option}') _entracte_runs"
        elif choices := list_choices(annotation):
            yield f"'{name} {option}') echo '{' '.join(choices)}'"
