"""The console: a live bar on a terminal, a line an epoch elsewhere, a table when a run is over."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from numbers import Real
from typing import TYPE_CHECKING

from hooks.writers.writer import Progress, Text, Value
from trainer.host.escaping import escape_text
from trainer.host.time_spans import add_listener

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.live import Live

    from hooks.writers.console_display import RunDisplay


class Console:
    """Shows on the console how a run goes.

    On a terminal it is a live bar with the time left and the newest losses, accuracies and other
    metrics; elsewhere (a file, a job's log) one plain line an epoch. When the run is over, however
    it ended, a table gives the last, lowest and highest value of each metric in it. Of the times
    (`time/...`) only the speed is shown, the machine's part (`system/...`) and what there is for
    every layer (`gradients/...`) only in the table. Where there is room, small curves stand beside
    losses and accuracies, and beside all in the table. From the start on the bar says what takes
    longer than a second (`compiling train, 12 s`; `train, 120 of 480 steps, 9 s of this epoch`),
    and fills within an epoch by the time that those before took, in the first by its steps.

    A `Text`, which `record` writes, is printed at once: framed above the bar, or as plain lines.
    Control characters in it, which could take the terminal over, are shown as `\\x1b`.

    Log records through rich's `RichHandler`, and what `print` prints, appear above the bar.

    Args:
        console: a `rich.console.Console`; the one that `rich.get_console()` gives if absent.

    Raises:
        ImportError: rich is not installed.

    >>> from rich.console import Console as RichConsole
    >>> from hooks.writers.writer import Progress
    >>> console = Console(console=RichConsole(force_terminal=False))
    >>> console.write(28, {"epoch": Progress(1, 20), "train/loss": 0.5})
    epoch  1/20  train/loss 0.5000
    """

    def __init__(self, *, console: RichConsole | None = None) -> None:
        try:
            import rich
        except ImportError as error:
            error.add_note('Console needs rich: pip install "entracte[console]"')
            raise
        self._console = console or rich.get_console()
        self._live: Live | None = None
        self._run: RunDisplay | None = None
        self._unheard: Callable[[], None] | None = None

    def write(self, step: int, values: Mapping[str, Value]) -> None:
        """Show values: on a line now, or in the bar at the next of its four refreshes a second."""
        values = {escape_text(name): value for name, value in values.items()}
        texts = {name: value.text for name, value in values.items() if isinstance(value, Text)}
        for name, text in texts.items():
            self._show(name, text, step, values.get("epoch"))
        if texts and not any(isinstance(value, Real) for value in values.values()):
            return
        if self._run is None:
            from hooks.writers.console_display import RunDisplay

            self._run = RunDisplay.begun(values)
        self._run.add(step, values)
        if not self._console.is_interactive:
            self._print(self._run.line())
        elif self._live is None:
            self._draw(self._run)

    def begin(self, progress: Progress) -> None:
        """Show on a terminal what the run is at: phases compile first, which may take long."""
        if self._run is not None or not self._console.is_interactive:
            return
        from hooks.writers.console_display import RunDisplay

        self._run = RunDisplay(began=math.inf, before=progress.done, progress=progress)
        self._run.thread = threading.get_ident()
        self._unheard = add_listener(lambda span: None)  # or what is under way is not known
        self._draw(self._run)

    def _draw(self, run: RunDisplay) -> None:
        self._live = run.live(self._console)
        self._live.start(refresh=True)

    def flush(self) -> None:
        """Do nothing: the console keeps no records."""

    def close(self) -> None:
        """Take the bar away and show the table; a further write begins another."""
        live, self._live = self._live, None
        run, self._run = self._run, None
        unheard, self._unheard = self._unheard, None
        if unheard is not None:
            unheard()
        if live is not None:
            live.stop()
        if run is not None and run.courses:
            self._console.print(run.render_summary(self._console))

    def _show(self, name: str, text: str, step: int, progress: Value | None) -> None:
        """Print a text, framed on a terminal."""
        from hooks.writers.console_display import indented, make_panel

        when = f"epoch {progress.done}" if isinstance(progress, Progress) else f"step {step}"
        if self._console.is_interactive:
            self._console.print(make_panel(name, self._encodable(text), when))
        else:
            self._print(indented(name, self._encodable(text), when))

    def _print(self, lines: str) -> None:
        """Print past rich, which would fold long lines."""
        print(lines, file=self._console.file, flush=True)

    def _encodable(self, text: str) -> str:
        """Escape what the console's file cannot hold: a sample must not end a run."""
        encoding = self._console.encoding
        return text.encode(encoding, "backslashreplace").decode(encoding)
