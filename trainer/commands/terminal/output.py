"""What commands print on: a console, the colors of states, JSON."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

from rich.console import Console
from rich.text import Text

from trainer.host.rendering.rich_tables import safe_text

BEST = "bold green"
"""Style of the best value."""

WIDE = 200
"""Characters of a line when the output is no terminal."""

STYLES = {
    "running": "bold green",
    "stalled": "bold yellow",
    "finished": "cyan",
    "interrupted": "magenta",
    "failed": "bold red",
    "open": "",
    "claimed": "green",
    "done": "cyan",
}
"""Styles of the states of runs and of requests."""


def make_console() -> Console:
    """Make the console to print on; into a file or a pipe it writes long lines.

    Brackets and colons in strings stay as they are: styles are given by `Text`.
    """
    console = Console(highlight=False, soft_wrap=False, markup=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in console._environ:
        console.width = WIDE
    return console


def state_text(state: str) -> Text:
    """Return a state in its color."""
    return safe_text(state, STYLES.get(state, ""))


def print_json(data: Any) -> None:
    """Print JSON; non-finite numbers become null, since JSON has none.

    >>> print_json({"loss": math.nan})
    {
      "loss": null
    }
    """
    json.dump(_nulled(data), sys.stdout, indent=2, allow_nan=False)
    print()


def _nulled(data: Any) -> Any:
    if isinstance(data, dict):
        return {str(key): _nulled(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_nulled(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
