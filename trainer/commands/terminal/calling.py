"""Call a command: from the words of a command line to an exit status."""

from __future__ import annotations

import contextlib
import inspect
import io
import itertools
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path

from trainer.checks.paths import to_absolute_path
from trainer.checks.suggestions import suggest_and_list
from trainer.commands.terminal.options import read_options, takes_one
from trainer.host.escaping import escape_lines, escape_text
from trainer.host.extras import install_command

Command = Callable[..., int | None]

WRONG = 2
"""Exit status of a command that was called wrongly."""

STOPPED = 130
"""Exit status of a command that the user stopped, as in shells."""

NEEDS = {"tyro": "config", "rich": "console"}
"""Libraries that the command line needs, and the extras that install them."""


class CommandError(Exception):
    """A command cannot do what was asked; its text says why, and what to do."""


LOAD_ERRORS = (ValueError, FileNotFoundError, AttributeError, TypeError)
"""Errors of an invalid FILE:NAME."""


@contextlib.contextmanager
def convert_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Convert errors to `CommandError`; those with notes, from a user's own code, are unchanged."""
    try:
        yield
    except kinds as error:
        if hasattr(error, "__notes__"):
            raise
        raise CommandError(escape_text(error)) from error


def parse_local_path(path: str, option: str) -> Path:
    """Return the path that an option names; one that is not local is an error."""
    with convert_errors(ValueError):
        return to_absolute_path(path, option)


def run_command(commands: Mapping[str, str], arguments: Sequence[str]) -> int:
    """Run one of several commands with the words of a command line; return the exit status.

    Commands are `module:function` by name; only the called module is imported.

    >>> run_command({}, ["fly"])
    2
    """
    if missing := _describe_missing():
        _print_error(missing)
        return WRONG
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        _print_overview(commands)
        return 0
    if name not in commands:
        _print_error(f"there is no command {name!a}{suggest_and_list(ascii(name)[1:-1], commands)}")
        return WRONG
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names may be of any alphabet
    try:
        status = _call(name, import_command(commands[name]), rest)
        sys.stdout.flush()
        return status
    except CommandError as refusal:
        _print_error(f"{name}: {refusal}")
        return WRONG
    except KeyboardInterrupt:
        return STOPPED
    except BrokenPipeError:  # the reader has stopped, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1  # as with rich


def import_command(place: str) -> Command:
    """Import the function at `module:function`."""
    module, _, name = place.partition(":")
    command: Command = getattr(import_module(module), name)
    return command


def merge_options(arguments: Sequence[str], single: Collection[str] = ()) -> list[str]:
    """Merge repeated occurrences of an option.

    Raises:
        CommandError: an option that takes one value, of those in `single`, is repeated.

    >>> merge_options(["--where", "a=1", "--json", "--where=b=2"])
    ['--where', 'a=1', 'b=2', '--json']
    """
    words: list[str] = []
    for word in arguments:
        option, given, value = word.partition("=")
        words += [option, value] if given and word.startswith("--") else [word]
    for option in single:
        values = [value for word, value in itertools.pairwise(words) if word == option]
        if len(values) > 1:
            raise CommandError(
                f"give {option} once, it takes one value; got {escape_text(', '.join(values))}"
            )
    before: list[str] = []
    groups: dict[str, list[str]] = {}
    last = before
    for word in words:
        if word.startswith("--"):
            last = groups.setdefault(word, [word])
        else:
            last.append(word)
    return [*before, *(word for group in groups.values() for word in group)]


def _call(name: str, command: Command, arguments: Sequence[str]) -> int:
    import tyro

    if add_options := getattr(command, "add_options", None):  # its options depend on the arguments
        command = add_options(arguments)
    single = [option for option, kind in read_options(command).items() if takes_one(kind)]
    try:
        status = tyro.cli(
            command,
            prog=f"entracte {name}",
            args=merge_options(arguments, single),
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except SystemExit as end:  # from tyro: help was requested, or the words do not fit
        if isinstance(end.code, str):
            raise
        return end.code or 0
    return status or 0


def _describe_missing() -> str:
    """Describe what must be installed, if anything."""
    extras = []
    for library, extra in NEEDS.items():
        try:
            import_module(library)
        except ImportError:
            extras.append((library, extra))
    if not extras:
        return ""
    libraries = " and ".join(library for library, _ in extras)
    command = install_command(*(extra for _, extra in extras))
    return f"the command line needs {libraries}: {command}"


def _print_overview(commands: Mapping[str, str]) -> None:
    """Print the commands, with the first line of each docstring."""
    from rich.console import Console

    from trainer.host.rendering.rich_tables import make_key_value_table

    summaries = [
        (name, (inspect.getdoc(import_command(place)) or "").partition("\n")[0])
        for name, place in commands.items()
    ]
    console = Console(highlight=False, markup=False, emoji=False)
    console.print("entracte COMMAND ...    recorded runs, and what can be done with them")
    console.print()
    console.print(make_key_value_table(summaries, style="bold cyan"))
    console.print()
    console.print("entracte COMMAND --help shows the arguments of a command.")


def _print_error(message: str) -> None:
    print(f"entracte: {escape_lines(message)}", file=sys.stderr)
