"""Printed texts are not interpreted as markup, emoji or terminal commands."""

from __future__ import annotations

import ast
from pathlib import Path

import _measuring

from trainer.commands.terminal.output import make_console
from trainer.host.rendering.rich_tables import Column, make_key_value_table, make_table, safe_text

ROOT = Path(__file__).parents[4]

PLAIN = "pip install -e '.[peers]' [/] [bold]x[/bold] :warning:"


def test_a_benchmarks_table_and_notes_are_shown_as_they_are(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(_measuring.CONSOLE, "width", 200)
    options = _measuring.arguments("x").parse_args(["--results", str(tmp_path)])
    _measuring.show(PLAIN, (PLAIN, "figure"), [(PLAIN, "1")])
    bars = [_measuring.bar(PLAIN, 1.0, least=0.5)]
    _measuring.finish(options, "b", bars=bars, notes=[f"for the peers: {PLAIN}"])
    assert capsys.readouterr().out.count(PLAIN) == 5


def test_what_commands_print_is_shown_as_it_is(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # so that nothing wraps
    console = make_console()
    console.print(PLAIN)
    console.print(safe_text(PLAIN), make_key_value_table([(PLAIN, PLAIN)]))
    console.print(make_table([Column(PLAIN, [safe_text(PLAIN)])], console.width, title=PLAIN))
    assert capsys.readouterr().out.count(PLAIN) == 7


def test_no_console_of_ours_reads_markup():
    found = 0
    for folder in ("trainer", "hooks", "benchmarks", "examples"):
        for file in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(file.read_text())
            if not any(
                isinstance(node, ast.ImportFrom)
                and node.module == "rich.console"
                and any(name.name == "Console" for name in node.names)
                for node in ast.walk(tree)
            ):
                continue
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Console":
                    found += 1
                    given = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
                    assert (given["markup"], given["emoji"]) == (False, False), (file, node.lineno)
    assert found >= 3
