"""The command line: `entracte COMMAND`."""

from __future__ import annotations

import sys

import entracte  # noqa: F401 - its finder finds hooks and models where a user's hide them
from trainer.commands.registry import COMMANDS
from trainer.commands.terminal.calling import run_command


def main(arguments: list[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: its name and its arguments; if None, those of the process.

    Returns:
        The exit status of the command, or 2 if it was called wrongly.
    """
    return run_command(COMMANDS, sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(main())
