"""The command `doctor`: whether this machine and its software are sound, and what to mend."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator

from rich.table import Table

from trainer.commands.diagnosis import machine_checks
from trainer.commands.diagnosis.machine_checks import Finding
from trainer.commands.diagnosis.self_test import run_self_test
from trainer.commands.terminal.output import make_console, print_json
from trainer.host.amounts import format_duration
from trainer.host.rich_tables import safe_text

MARKS = {"good": ("ok", "green"), "note": ("note", "yellow"), "wrong": ("WRONG", "bold red")}
"""Word and style of each verdict."""


def doctor(*, store: str | None = None, quick: bool = False, json: bool = False) -> int:
    """Look whether all is in order: versions, devices, memory, cache, store, disk, and a self-test.

    The self-test, of ten seconds at most, trains a tiny network, commits and restores it, goes on,
    and compares the bits with those of a training that was never cut. Exit status: 1 where
    something is wrong, else 0; a note is no fault.

    Args:
        store: directory of the runs, file *.sqlite, or postgresql://USER@HOST/DATABASE; else
            $ENTRACTE_STORE, else runs/.
        quick: leave the self-test out.
        json: print JSON.
    """
    looks: dict[str, Callable[[], Iterable[Finding]]] = {
        "versions": machine_checks.versions,
        "devices": machine_checks.devices,
        "memory": machine_checks.memory,
        "compilation cache": machine_checks.cache,
        "SQLite": machine_checks.sqlite,
        "store": lambda: machine_checks.store(store),
        "disk": lambda: machine_checks.disk(store),
    }
    if not quick:
        looks["self-test"] = _tested
    console = make_console()
    findings: list[Finding] = []
    for subject, look in looks.items():
        for finding in _found(subject, look):
            findings.append(finding)
            if not json:
                console.print(_line(finding))
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


def _found(subject: str, look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Look at a subject; whatever is raised there is a finding too."""
    try:
        yield from look()
    except Exception as error:
        notes = " ".join(getattr(error, "__notes__", ()))
        told = f"{type(error).__name__}: {error}"
        yield Finding(subject, "wrong", told, notes or "see what this error says")


def _tested() -> Iterator[Finding]:
    log = logging.getLogger("entracte")
    level = log.level
    log.setLevel(logging.ERROR)
    began = time.monotonic()
    try:
        told = run_self_test()
    finally:
        log.setLevel(level)
    yield Finding("self-test", "good", f"{told}; {format_duration(time.monotonic() - began)}")


def _line(finding: Finding) -> Table:
    word, style = MARKS[finding.verdict]
    line = Table.grid(padding=(0, 2))
    line.add_column(width=5, style=style)
    line.add_column(width=17)
    line.add_column(overflow="fold")
    line.add_row(word, safe_text(finding.subject, "bold"), safe_text(finding.found))
    if finding.remedy:
        line.add_row("", "", safe_text(f"→ {finding.remedy}", style))
    return line
