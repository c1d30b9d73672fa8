"""The command `simulate`: call a function that plays a checkpoint."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import typing
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import tyro

from trainer.commands.lookup.checkpoint_choice import (
    NEWEST,
    CheckpointSelection,
    SelectionOptions,
    choose_checkpoint,
)
from trainer.commands.lookup.functions import load_function
from trainer.commands.lookup.stores import RunName, StoreName
from trainer.commands.terminal.calling import Command, CommandError, merge_options

Simulation = Callable[..., int | None]
"""`(checkpoint, *, ...)`: restores a `CheckpointChoice`, and plays, prints or writes.

Its further parameters become options, by their annotations and defaults."""

FORM = "(checkpoint, *, ...)"
"""How a simulation is called, for messages."""


def simulate(
    run: RunName,
    /,
    *,
    with_: Annotated[str, tyro.conf.arg(name="with")],
    selection: SelectionOptions = NEWEST,
    store: StoreName = None,
) -> int:
    """Load a checkpoint and play its policy.

    It calls your function NAME(checkpoint, *, ...), which restores the checkpoint,
    checkpoint.restore(template), and uses the state. Its further parameters become options of this
    command: --with FILE:NAME --help lists them.

    Args:
        run: its name, or the path of its directory.
        with_: FILE:NAME of the function, such as examples/cartpole.py:simulation.
    """
    return load_function(with_, FORM)(choose_checkpoint(run, store, selection)) or 0


def _add_options(words: Sequence[str]) -> Command:
    """Return the command with the options of the function that the words name, if they do."""
    pairs = itertools.pairwise(merge_options(words))
    named = next((value for option, value in pairs if option == "--with"), None)
    return simulate if named is None else _make_command(load_function(named, FORM))


simulate.add_options = _add_options  # type: ignore[attr-defined]


def _make_command(simulation: Simulation) -> Command:
    """Make a command with the options of a simulation."""
    own = inspect.signature(simulate, eval_str=True).parameters
    parameters = [*inspect.signature(simulation).parameters.values()]
    if not parameters:
        raise CommandError(f"{simulation.__name__} must take the checkpoint: {FORM}")
    first, *others = parameters
    hints = typing.get_type_hints(simulation, include_extras=True)
    reserved = {*own, "with", *(field.name for field in dataclasses.fields(CheckpointSelection))}
    for option in others:
        if option.kind is not inspect.Parameter.KEYWORD_ONLY or option.name in reserved:
            raise CommandError(
                f"{simulation.__name__}: its parameters besides {first.name!r} must be "
                f"keyword-only and none of {', '.join(sorted(reserved))}; got {option.name!r}"
            )
    options = [option.replace(annotation=hints.get(option.name, str)) for option in others]

    def run(
        name: str,
        /,
        *,
        with_: str,
        selection: CheckpointSelection,
        store: str | None,
        **settings: Any,
    ) -> int:
        return simulation(choose_checkpoint(name, store, selection), **settings) or 0

    signature = inspect.Signature([*own.values(), *options], return_annotation=int)
    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in signature.parameters.values()}
    run.__doc__ = _join_docstrings(simulation)
    return run


def _join_docstrings(simulation: Simulation) -> str:
    """Join the docstrings, so that help describes all options."""
    own, theirs = inspect.getdoc(simulate) or "", inspect.getdoc(simulation) or ""
    summary, _, arguments = theirs.partition("\n\nArgs:\n")
    described, _, _ = arguments.partition("\n\n")
    head, _, rest = own.partition("\n\nArgs:\n")
    return f"{summary or head}\n\nArgs:\n{rest}\n{described}"
