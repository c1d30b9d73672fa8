"""The command `simulate`: what a checkpoint can do, by a function that plays it."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import tyro

from trainer.checks.modes import Mode
from trainer.commands.lookup.checkpoint_choice import CheckpointChoice, choose_checkpoint
from trainer.commands.lookup.stores import RunName
from trainer.commands.terminal.calling import Command, CommandError, convert_load_errors
from trainer.evaluators.suite_loading import load_named
from trainer.host.escaping import escape_text

Simulation = Callable[..., int | None]
"""`(checkpoint, *, ...)`: restores a `CheckpointChoice`, and plays, prints or writes.

What it takes besides are flags, by their annotations and defaults."""


def simulate(
    run: RunName,
    /,
    *,
    with_: Annotated[str, tyro.conf.arg(name="with")],
    epoch: int | None = None,
    best: str | None = None,
    mode: Mode | None = None,
    store: str | None = None,
) -> int:
    """Load a checkpoint and play its policy, or generate from its model.

    It calls a function of yours, NAME(checkpoint, *, ...), which restores the checkpoint,
    checkpoint.restore(template), and does what it likes with the state. What the function takes
    besides are further flags of this command: --with FILE:NAME --help lists them.

    Args:
        run: its name, or the path of its directory.
        with_: FILE:NAME of the function, such as examples/cartpole.py:simulation.
        epoch: of the checkpoint; the newest where neither this nor --best is given.
        best: take the checkpoint with the best score of this name, such as val/return.
        mode: which of two scores is better, min or max, where the name does not tell.
        store: directory of the runs, file *.sqlite, or postgresql://USER@HOST/DATABASE; else
            $ENTRACTE_STORE, else runs/.
    """
    return _run(
        _loaded(with_), choose_checkpoint(run, store, epoch=epoch, best=best, mode=mode), {}
    )


def _shaped(words: Sequence[str]) -> Command:
    """Give the command with the flags of the function that the words name, where they name one."""
    named = _named(words)
    return simulate if named is None else _with_flags(_loaded(named))


simulate.shaped = _shaped  # type: ignore[attr-defined]


def _named(words: Sequence[str]) -> str | None:
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == "--with" and following:
            return following
        if word.startswith("--with="):
            return word.removeprefix("--with=")
    return None


def _loaded(named: str) -> Simulation:
    with convert_load_errors():
        found = load_named(named)
    if not inspect.isfunction(found):
        raise CommandError(
            f"{escape_text(named)} must be a function (checkpoint, *, ...); got {found!r:.80}"
        )
    return found


def _with_flags(simulation: Simulation) -> Command:
    """Give the command with the flags of a simulation."""
    own = inspect.signature(simulate, eval_str=True).parameters
    parameters = [*inspect.signature(simulation).parameters.values()]
    if not parameters:
        raise CommandError(f"{simulation.__name__} must take the checkpoint: (checkpoint, *, ...)")
    first, *others = parameters
    hints = typing.get_type_hints(simulation, include_extras=True)
    for one in others:
        if one.kind is not inspect.Parameter.KEYWORD_ONLY or one.name in own or one.name == "with":
            raise CommandError(
                f"{simulation.__name__}: what it takes besides {first.name!r} must be keyword-only "
                f"and none of {', '.join(own)}; got {one.name!r}"
            )
    flags = [one.replace(annotation=hints.get(one.name, str)) for one in others]

    def run(name: str, /, **given: Any) -> int:
        overrides = {one.name: given.pop(one.name) for one in flags}
        with_ = given.pop("with_")
        del with_  # it is loaded
        return _run(simulation, choose_checkpoint(name, **given), overrides)

    signature = inspect.Signature([*own.values(), *flags], return_annotation=int)
    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in signature.parameters.values()}
    run.__doc__ = _documented(simulation)
    return run


def _documented(simulation: Simulation) -> str:
    """Join the docstrings, so that help tells of all flags."""
    own, theirs = inspect.getdoc(simulate) or "", inspect.getdoc(simulation) or ""
    summary, _, arguments = theirs.partition("\n\nArgs:\n")
    described, _, _ = arguments.partition("\n\n")
    head, _, rest = own.partition("\n\nArgs:\n")
    return f"{summary or head}\n\nArgs:\n{rest}\n{described}"


def _run(simulation: Simulation, checkpoint: CheckpointChoice, overrides: dict[str, Any]) -> int:
    return simulation(checkpoint, **overrides) or 0
