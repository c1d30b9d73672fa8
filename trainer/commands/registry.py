"""The commands by name."""

from __future__ import annotations

COMMANDS = {
    "new": f"{__package__}.setup.new:new",
    "runs": f"{__package__}.list_runs:runs",
    "show": f"{__package__}.show:show",
    "compare": f"{__package__}.compare:compare",
    "watch": f"{__package__}.watch:watch",
    "deliver": f"{__package__}.deliver:deliver",
    "evaluate": f"{__package__}.evaluate:evaluate",
    "simulate": f"{__package__}.simulate:simulate",
    "generate": f"{__package__}.generate:generate",
    "report": f"{__package__}.report:report",
    "export": f"{__package__}.export:export",
    "backtest": f"{__package__}.backtest:backtest",
    "doctor": f"{__package__}.doctor:doctor",
    "completion": f"{__package__}.setup.completion:completion",
}
"""Name to `module:function`, in the order of the overview; only the called module is imported.

Such a function takes required arguments positional-only, and options keyword-only with defaults.
Its annotations and docstring define the command line. It returns the exit status (None is 0), and
raises `trainer.commands.terminal.calling.CommandError` for what the user must correct.
"""
