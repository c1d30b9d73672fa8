"""The command line: `python -m trainer COMMAND`."""

from __future__ import annotations

import sys

from trainer.commands.terminal.calling import run_command

COMMANDS = {
    "runs": "trainer.commands.list_runs:runs",
    "show": "trainer.commands.show:show",
    "compare": "trainer.commands.compare:compare",
    "watch": "trainer.commands.watch:watch",
    "deliver": "trainer.commands.deliver:deliver",
    "evaluate": "trainer.commands.evaluate:evaluate",
    "simulate": "trainer.commands.simulate:simulate",
    "generate": "trainer.commands.generate:generate",
    "report": "trainer.commands.report:report",
    "export": "trainer.commands.export:export",
    "backtest": "trainer.commands.backtest:backtest",
    "doctor": "trainer.commands.doctor:doctor",
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
