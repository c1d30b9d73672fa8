"""The command `doctor`: check this machine and its software, and say what to fix."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator

from rich.table import Table

from trainer.commands.diagnosis import machine_checks
from trainer.commands.diagnosis.machine_checks import Finding
from trainer.commands.diagnosis.self_test import run_self_test
from trainer.commands.lookup.stores import StoreName
from trainer.commands.terminal.output import make_console, print_json
from trainer.host.amounts import format_duration
from trainer.host.rich_tables import safe_text

MARKS = {"good": ("ok", "green"), "note": ("note", "yellow"), "wrong": ("WRONG", "bold red")}
"""Word and style of each verdict."""


def doctor(*, store: StoreName = None, quick: bool = False, json: bool = False) -> int:
    """Check versions, devices, memory, cache, store and disk, and run a self-test.

    The self-test, of ten seconds at most, trains a tiny network, saves and restores it, continues,
    and compares the result bit for bit with an uninterrupted training. Exit status: 1 if something
    is wrong, else 0; a note is no fault.

    Args:
        quick: skip the self-test.
        json: print JSON.
    """
    checks: dict[str, Callable[[], Iterable[Finding]]] = {
        "versions": machine_checks.versions,
        "devices": machine_checks.devices,
        "memory": machine_checks.memory,
        "compilation cache": machine_checks.cache,
        "SQLite": machine_checks.sqlite,
        "store": lambda: machine_checks.store(store),
        "disk": lambda: machine_checks.disk(store),
    }
    if not quick:
        checks["self-test"] = _check_training
    console = make_console()
    findings: list[Finding] = []
    for subject, check in checks.items():
        for finding in _run_check(subject, check):
            findings.append(finding)
            if not json:
                console.print(_make_line(finding))
    wrong = [finding.subject for finding in findings if finding.verdict == "wrong"]
    if json:
        print_json([finding._asdict() for finding in findings])
    else:
        console.print()
        console.print(
            safe_text(f"wrong: {', '.join(wrong)}", "bold red")
            if wrong
            else safe_text("all is well", "green")
        )
    return 1 if wrong else 0


def _run_check(subject: str, check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Run a check; an exception becomes a finding too."""
    try:
        yield from check()
    except Exception as error:
        notes = " ".join(getattr(error, "__notes__", ()))
        message = f"{type(error).__name__}: {error}"
        yield Finding(subject, "wrong", message, notes or "see what this error says")


def _check_training() -> Iterator[Finding]:
    log = logging.getLogger("entracte")
    level = log.level
    log.setLevel(logging.ERROR)
    began = time.monotonic()
    try:
        result = run_self_test()
    finally:
        log.setLevel(level)
    yield Finding("self-test", "good", f"{result}; {format_duration(time.monotonic() - began)}")


def _make_line(finding: Finding) -> Table:
    word, style = MARKS[finding.verdict]
    line = Table.grid(padding=(0, 2))
    line.add_column(width=5, style=style)
    line.add_column(width=17)
    line.add_column(overflow="fold")
    line.add_row(word, safe_text(finding.subject, "bold"), safe_text(finding.found))
    if finding.remedy:
        line.add_row("", "", safe_text(f"→ {finding.remedy}", style))
    return line
