"""The command line: `entracte COMMAND`."""

from __future__ import annotations

import sys

from trainer.commands.terminal.calling import run_command

COMMANDS = {
    "runs": f"{__package__}.commands.list_runs:runs",
    "show": f"{__package__}.commands.show:show",
    "compare": f"{__package__}.commands.compare:compare",
    "watch": f"{__package__}.commands.watch:watch",
    "deliver": f"{__package__}.commands.deliver:deliver",
    "evaluate": f"{__package__}.commands.evaluate:evaluate",
    "simulate": f"{__package__}.commands.simulate:simulate",
    "generate": f"{__package__}.commands.generate:generate",
    "report": f"{__package__}.commands.report:report",
    "export": f"{__package__}.commands.export:export",
    "backtest": f"{__package__}.commands.backtest:backtest",
    "doctor": f"{__package__}.commands.doctor:doctor",
}
"""Name to `module:function`, in the order of the overview; only the called module is imported.

Such a function takes required arguments positional-only, and options keyword-only with defaults.
Its annotations and docstring define the command line. It returns the exit status (None is 0), and
raises `trainer.commands.terminal.calling.CommandError` for what the user must correct.
"""


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
