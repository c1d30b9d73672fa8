"""Functions of a user's file that a command line names."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from trainer.commands.terminal.calling import LOAD_ERRORS, CommandError, convert_errors
from trainer.evaluators.suite_loading import load_named
from trainer.host.escaping import escape_text


def load_function(named: str, form: str) -> Callable[..., Any]:
    """Load the function at FILE:NAME; `form` says in messages how it is called.

    Raises:
        CommandError: there is no such file or name, or it is no function.
    """
    with convert_errors(*LOAD_ERRORS):
        loaded = load_named(named)
    if not inspect.isfunction(loaded):
        raise CommandError(f"{escape_text(named)} must be a function {form}; got {loaded!r:.80}")
    return loaded
