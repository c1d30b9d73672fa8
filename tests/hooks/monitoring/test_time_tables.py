"""Tables of times: a tree whose numbers add up, on a terminal and elsewhere, with any names."""

from __future__ import annotations

import io
import sys

import pytest
import rich
from rich.console import Console

from hooks.monitoring.time_tables import build_rows, print_times

SECOND = 10**9
EPOCH, WAIT, HOOK = ("epoch", ""), ("wait", "train"), ("hook", "look")
THREAD, WRITE = ("thread", "saver"), ("save", "write")
SUMS = {
    (WAIT,): (1, SECOND),
    (EPOCH, HOOK): (4, 1 * SECOND),
    (EPOCH, WAIT): (4, 6 * SECOND),
    (THREAD, WRITE): (2, 9 * SECOND),
    (EPOCH,): (4, 8 * SECOND),
}
HOSTILE = "[red]x[/red]\n\x1b[2J'\"é\u202e"


def told(sums, seconds=10.0):
    return [(row.label, row.times, row.seconds, row.own) for row in build_rows(sums, seconds)]


def test_the_longest_comes_first_other_threads_last_and_numbers_add_up():
    assert told(SUMS) == [
        ("run", 1, 10.0, 1.0),
        ("  epoch", 4, 8.0, 1.0),
        ("    wait train", 4, 6.0, None),
        ("    hook look", 4, 1.0, None),
        ("  wait train", 1, 1.0, None),
        ("  thread saver", 0, 9.0, None),
        ("    save write", 2, 9.0, None),
    ]


def test_spans_that_began_before_are_shown_as_far_as_known():
    assert told({(EPOCH, HOOK, WAIT): (2, 3 * SECOND)}) == [
        ("run", 1, 10.0, 7.0),
        ("  epoch", 0, 3.0, None),
        ("    hook look", 0, 3.0, None),
        ("      wait train", 2, 3.0, None),
    ]
    assert told({}) == [("run", 1, 10.0, None)]


def test_own_time_is_never_negative():
    again = {(THREAD, WRITE): (1, SECOND), (THREAD, WRITE, WAIT): (2, 3 * SECOND)}
    assert told(again)[2:] == [
        ("    save write", 1, 1.0, 0.0),
        ("      wait train", 2, 3.0, None),
    ]


def test_rows_below_a_thousandth_are_left_out(capsys):
    print_times({(WAIT,): (5, SECOND), (HOOK,): (7, SECOND // 101)}, 10.0)
    assert capsys.readouterr().out.splitlines() == [
        "time of 10 s; what took less than 0.1% is left out",
        "what           share  total     own  count    mean",
        "run           100.0%   10 s  8.99 s      1    10 s",
        "  wait train   10.0%    1 s              5  200 ms",
    ]


@pytest.mark.parametrize("terminal", [True, False])
def test_names_cannot_control_the_terminal(monkeypatch, capsys, terminal):
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    console = Console(file=file, force_terminal=terminal, width=100, color_system=None)
    monkeypatch.setattr(rich, "_console", console)
    print_times({(("hook", HOSTILE),): (2, 5 * SECOND)}, 10.0)
    file.seek(0)
    out = file.read() if terminal else capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if "hook" in line]
    shown = "hook [red]x[/red]\\n\\x1b[2J'\"" + ("\\xe9" if terminal else "é") + "\\u202e"
    cells = line.replace("|", " ").strip().removeprefix(shown).split()
    assert cells == ["50.0%", "5", "s", "2", "2.5", "s"]


def test_without_rich_it_is_plain(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rich", None)
    print_times(SUMS, 10.0)
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "time of 10 s"
    assert [line.split("  ")[0] or line.strip().split("  ")[0] for line in out[1:4]] == [
        "what",
        "run",
        "epoch",
    ]
