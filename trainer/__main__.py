"""The command line, `python -m trainer COMMAND`: where runs, hooks and evaluators meet."""

from __future__ import annotations

import sys

from trainer.commands.calling import call

COMMANDS = {
    "runs": "trainer.commands.runs:runs",
    "show": "trainer.commands.show:show",
    "compare": "trainer.commands.comparing:compare",
    "watch": "trainer.commands.watching:watch",
    "deliver": "trainer.commands.delivering:deliver",
    "evaluate": "trainer.commands.evaluating:evaluate",
    "simulate": "trainer.commands.simulating:simulate",
    "report": "hooks.commands.reporting:report",
    "export": "trainer.commands.exporting:export",
    "replay": "hooks.commands.replaying:replay",
    "doctor": "trainer.commands.doctor:doctor",
}
"""Name to `module:function`, in the order of the overview; only what is called is imported.

Such a function takes what must be given positional-only, the rest keyword-only, with defaults; its
annotations and docstring make the command line. It returns the exit status (None is 0), and raises
`trainer.commands.calling.Refused` for what its user must mend.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: its name and what it was given; those of the process where None.

    Returns:
        The exit status: that of the command, or 2 where it was called wrongly.
    """
    return call(COMMANDS, sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(main())
