"""The terminal of a user while `examples/digits.py` trains, and when it is over."""

import io
import re
from pathlib import Path

from example_runs import train_in_terminal
from rich.console import Console
from rich.rule import Rule
from rich.text import Text

COLUMNS = 110

ERASE, UP = "\x1b[2K", "\x1b[1A"
TOKENS = re.compile(r"(\x1b\[2K|\x1b\[1A|\x1b\[\?25[lh]|\r?\n|\r)")

FORMAT = """<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; }}
.{unique_id}-title {{ font-family: system-ui, sans-serif; font-size: 18px; font-weight: bold; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""
"""Rich's own format loads a font from elsewhere; pictures of a page must not."""


def draw_terminal(runs: Path, to: Path) -> None:
    """Write `terminal.svg`: the screen in the middle of the run, then what the run leaves."""
    output = train_in_terminal("digits", runs, COLUMNS)
    screens = list_screens(output.replace(str(runs.resolve()), "~/entracte"))
    live = [screen for screen in screens if any("steps/s" in line for line in screen)]
    during, after = live[len(live) // 2], screens[-1]
    logged = sum(line in during for line in after if line)  # it stays above the live bar
    console = Console(
        file=io.StringIO(),
        record=True,
        width=COLUMNS,
        force_terminal=True,
        color_system="truecolor",
    )
    console.print(Text("$ python examples/digits.py", "bold"))
    for line in during:
        console.print(Text.from_ansi(line))
    console.print()
    console.print(Rule("and when the run is over", style="dim"))
    for line in after[logged:]:
        console.print(Text.from_ansi(line))
    picture = console.export_svg(title="entracte", code_format=FORMAT, unique_id="terminal")
    (to / "terminal.svg").write_text(picture)


def list_screens(output: str) -> list[list[str]]:
    """Return the lines of the screen before each redraw, and at the end.

    It knows what a live display of rich sends: erased lines, and moves to the line above.
    """
    screens: list[list[str]] = []
    lines, row, redraws = [""], 0, False
    for token in TOKENS.split(output):
        if token == ERASE:
            if not redraws:
                screens.append(list(lines))
            redraws, lines[row] = True, ""
        elif token == UP:
            row -= 1
        elif token.endswith("\n"):
            row += 1
            lines += [""] * (row == len(lines))
        elif token and token[0] != "\r" and not token.startswith("\x1b[?"):
            lines[row] += token
            redraws = False
    return [*screens, lines]
