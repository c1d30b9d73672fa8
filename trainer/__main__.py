"""The command line, `python -m trainer COMMAND`: where runs, hooks and evaluators meet."""

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
    "report": "trainer.commands.report:report",
    "export": "trainer.commands.export:export",
    "backtest": "trainer.commands.backtest:backtest",
    "doctor": "trainer.commands.doctor:doctor",
}
"""Name to `module:function`, in the order of the overview; only what is called is imported.

Such a function takes what must be given positional-only, the rest keyword-only, with defaults; its
annotations and docstring make the command line. It returns the exit status (None is 0), and raises
`trainer.commands.terminal.calling.CommandError` for what its user must mend.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: its name and what it was given; those of the process where None.

    Returns:
        The exit status: that of the command, or 2 where it was called wrongly.
    """
    return run_command(COMMANDS, sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(main())
