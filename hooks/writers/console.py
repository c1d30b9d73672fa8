"""A writer for the console: a live bar on a terminal or in a notebook, else a line per epoch."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from numbers import Real
from typing import TYPE_CHECKING

from hooks.writers.values import Progress, Text, Value
from trainer.host.escaping import escape_text, escape_unencodable
from trainer.host.extras import require_extra
from trainer.host.notebooks import in_notebook
from trainer.host.time_spans import add_listener

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.live import Live

    from hooks.writers.console_display import RunDisplay
    from hooks.writers.notebook_display import NotebookDisplay


class Console:
    """Shows a run's progress and metrics on the console.

    On a terminal it is a live bar with the time left and the newest metrics; elsewhere (a file, a
    job's log) one plain line per epoch. In a notebook, which it finds out by itself, it is one
    display below the cell, with curves of losses and accuracies and the last texts; it is updated
    at most four times a second, needs no scripts, and stays in the saved notebook.

    When the run is over, however it ended, a table shows the last, lowest and highest value of each
    metric. Of the times (`time/...`) only the speed is shown; metrics of the machine (`system/...`)
    and of layers (`gradients/...`) only in the table; confusion matrices (`val/confusion/2/7`) not.
    If there is room, the bar draws small curves of losses and accuracies, and the table of all
    metrics. The bar names what takes longer than a second (`compiling train, 12 s`; `train, 120 of
    480 steps, 9 s of this epoch`). It advances within an epoch by the duration of earlier epochs,
    in the first epoch by its steps.

    A `Text`, which `record` writes, is printed at once: framed above the bar, or as plain lines.
    Control characters in it, which could take over the terminal, are shown as `\\x1b`.

    Log records through rich's `RichHandler`, and the output of `print`, appear above the bar.

    Args:
        console: a `rich.console.Console`; `rich.get_console()` if absent. A given one is printed
            to in a notebook, too.

    Raises:
        ImportError: rich is not installed.

    >>> from rich.console import Console as RichConsole
    >>> from hooks.writers.values import Progress
    >>> console = Console(console=RichConsole(force_terminal=False))
    >>> console.write(28, {"epoch": Progress(1, 20), "train/loss": 0.5})
    epoch  1/20  train/loss 0.5000
    """

    def __init__(self, *, console: RichConsole | None = None) -> None:
        with require_extra("console", "Console", "rich"):
            import rich
        self._in_notebook = console is None and in_notebook()
        self._console = console or rich.get_console()
        self._display: NotebookDisplay | None = None
        self._live: Live | None = None
        self._run: RunDisplay | None = None
        self._unlisten: Callable[[], None] | None = None

    def write(self, step: int, values: Mapping[str, Value]) -> None:
        """Show values: on a line now, or in the bar, which is redrawn four times a second."""
        values = {escape_text(name): value for name, value in values.items()}
        if self._in_notebook:
            from hooks.writers.console_display import RunDisplay

            if self._display is None:
                self._display = self._start_display(RunDisplay.from_values(values))
            self._display.add(step, values)
            return
        texts = {name: value.text for name, value in values.items() if isinstance(value, Text)}
        for name, text in texts.items():
            self._show(name, text, step, values.get("epoch"))
        if texts and not any(isinstance(value, Real) for value in values.values()):
            return
        if self._run is None:
            from hooks.writers.console_display import RunDisplay

            self._run = RunDisplay.from_values(values)
        self._run.add(step, values)
        if not self._console.is_interactive:
            self._print(self._run.line())
        elif self._live is None:
            self._draw(self._run)

    def begin(self, progress: Progress) -> None:
        """Start the bar, unless lines are printed: phases compile first, which may take long."""
        known = self._run is not None or self._display is not None
        if known or not (self._in_notebook or self._console.is_interactive):
            return
        from hooks.writers.console_display import RunDisplay

        run = RunDisplay(began=math.inf, epochs_before=progress.done, progress=progress)
        run.thread = threading.get_ident()
        self._unlisten = add_listener(lambda span: None)  # open spans are only kept for listeners
        if self._in_notebook:
            self._display = self._start_display(run)
        else:
            self._run = run
            self._draw(run)

    def _start_display(self, run: RunDisplay) -> NotebookDisplay:
        from hooks.writers.notebook_display import NotebookDisplay

        display = NotebookDisplay(run)
        display.start()
        return display

    def _draw(self, run: RunDisplay) -> None:
        self._live = run.live(self._console)
        self._live.start(refresh=True)

    def flush(self) -> None:
        """Do nothing: the console keeps no records."""

    def close(self) -> None:
        """Show the table in place of the bar; the next write starts another."""
        live, run, unlisten, display = self._live, self._run, self._unlisten, self._display
        self._live = self._run = self._unlisten = self._display = None
        if unlisten is not None:
            unlisten()
        if display is not None:
            display.close()
        if live is not None:
            live.stop()
        if run is not None and run.summaries:
            self._console.print(run.render_summary(self._console))

    def _show(self, name: str, text: str, step: int, progress: Value | None) -> None:
        """Print a text, framed on a terminal."""
        from hooks.writers.console_layout import indent_text, make_panel

        when = f"epoch {progress.done}" if isinstance(progress, Progress) else f"step {step}"
        text = escape_unencodable(text, self._console.encoding)  # a sample must not end a run
        if self._console.is_interactive:
            self._console.print(make_panel(name, text, when))
        else:
            self._print(indent_text(name, text, when))

    def _print(self, lines: str) -> None:
        """Print without rich, which would wrap long lines."""
        print(lines, file=self._console.file, flush=True)
