"""Calling a command: from the words of a command line to an exit status."""

from __future__ import annotations

import contextlib
import inspect
import io
import itertools
import os
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

from trainer.checks.paths import to_absolute_path
from trainer.checks.suggestions import suggest_and_list
from trainer.host.escaping import escape_lines, escape_text

Command = Callable[..., int | None]

WRONG = 2
"""Exit status where a command was called wrongly."""

STOPPED = 130
"""Exit status where the user ended it, as shells have it."""

NEEDS = {"tyro": "config", "rich": "console"}
"""What the command line needs, and the extra that brings it."""


class CommandError(Exception):
    """A command cannot be done as it was asked for; its text says why, and what to do."""


@contextlib.contextmanager
def convert_load_errors() -> Iterator[None]:
    """Refuse a FILE:NAME that leads nowhere; what the file itself raises stays as it is."""
    try:
        yield
    except (ValueError, FileNotFoundError, AttributeError, TypeError) as error:
        if hasattr(error, "__notes__"):
            raise
        raise CommandError(escape_text(error)) from error


def parse_local_path(path: str, option: str) -> Path:
    """Give the place that an option names; one that is no local path is refused."""
    try:
        return to_absolute_path(path, option)
    except ValueError as error:
        raise CommandError(escape_text(error)) from error


def run_command(commands: Mapping[str, str], arguments: Sequence[str]) -> int:
    """Run a command of several.

    Args:
        commands: name to `module:function`; only the called one's module is imported.
        arguments: the words of the command line.

    Returns:
        The exit status.

    >>> run_command({}, ["fly"])
    2
    """
    if missing := _missing():
        _tell(missing)
        return WRONG
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        _overview(commands)
        return 0
    if name not in commands:
        _tell(f"there is no command {name!a}{suggest_and_list(ascii(name)[1:-1], commands)}")
        return WRONG
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names may be of any alphabet
    try:
        status = _called(name, imported(commands[name]), rest)
        sys.stdout.flush()
        return status
    except CommandError as refusal:
        _tell(f"{name}: {refusal}")
        return WRONG
    except KeyboardInterrupt:
        return STOPPED
    except BrokenPipeError:  # whoever read has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1  # as rich has it


def imported(place: str) -> Command:
    """Import the function at `module:function`."""
    module, _, name = place.partition(":")
    command: Command = getattr(import_module(module), name)
    return command


def merge_options(arguments: Sequence[str], single: Collection[str] = ()) -> list[str]:
    """Put together what an option was given that is given several times, so that none is lost.

    Args:
        arguments: the words of the command line behind the command's name.
        single: options that take one value.

    Raises:
        Refused: one of these is given several times.

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


def _called(name: str, command: Command, arguments: Sequence[str]) -> int:
    import tyro

    if shaped := getattr(command, "shaped", None):  # what it takes depends on what it is given
        command = shaped(arguments)
    try:
        status = tyro.cli(
            command,
            prog=f"python -m trainer {name}",
            args=merge_options(arguments, _single(command)),
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except SystemExit as end:  # of tyro: help was asked for, or the words do not fit
        if isinstance(end.code, str):
            raise
        return end.code or 0
    return status or 0


def _single(command: Command) -> list[str]:
    """Name the options of a command that take one value."""
    parameters = inspect.signature(command, eval_str=True).parameters.values()
    return [
        f"--{one.name.rstrip('_').replace('_', '-')}"
        for one in parameters
        if one.kind is inspect.Parameter.KEYWORD_ONLY and _takes_one(one.annotation)
    ]


def _takes_one(annotation: Any) -> bool:
    kind, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if kind is Annotated:
        return _takes_one(parts[0])
    if kind in (typing.Union, types.UnionType):
        return all(part is types.NoneType or _takes_one(part) for part in parts)
    return kind is typing.Literal or annotation in (str, int, float, Path)


def _missing() -> str:
    """Say what must be installed, if anything."""
    extras = []
    for library, extra in NEEDS.items():
        try:
            import_module(library)
        except ImportError:
            extras.append((library, extra))
    if not extras:
        return ""
    libraries = " and ".join(library for library, _ in extras)
    return (
        f"the command line needs {libraries}: pip install "
        f'"entracte[{",".join(extra for _, extra in extras)}]"'
    )


def _overview(commands: Mapping[str, str]) -> None:
    """Print what there is, with the first line of each command's docstring."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold cyan", no_wrap=True)
    table.add_column()
    for name, place in commands.items():
        table.add_row(name, Text((inspect.getdoc(imported(place)) or "").partition("\n")[0]))
    console = Console(highlight=False, markup=False, emoji=False)
    console.print("python -m trainer COMMAND ...    runs on record, and what can be done with them")
    console.print()
    console.print(table)
    console.print()
    console.print("python -m trainer COMMAND --help tells the rest.")


def _tell(message: str) -> None:
    print(f"python -m trainer: {escape_lines(message)}", file=sys.stderr)
