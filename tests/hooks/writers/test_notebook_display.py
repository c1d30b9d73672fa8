"""The display of a run in a notebook: one, with its progress, curves, last texts and table."""

from __future__ import annotations

import io
import math
import re
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console as RichConsole

import trainer
from hooks.metric_logging import log_metrics
from hooks.testing import check_hook
from hooks.writers import console_display, notebook_display
from hooks.writers.console import Console
from hooks.writers.console_display import RunDisplay
from hooks.writers.notebook_display import PAUSE, NotebookDisplay
from hooks.writers.values import Image, Progress, Text
from trainer.host.time_spans import OpenSpan


@pytest.fixture
def shown(monkeypatch):
    """What a notebook holds: a list for each display, of its versions."""
    displays = []

    def display(bundle, *, raw, display_id):
        assert raw
        assert display_id
        displays.append([bundle])
        return SimpleNamespace(update=lambda new, *, raw: displays[-1].append(new))

    kernel = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object()))
    monkeypatch.setitem(sys.modules, "IPython", kernel)
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    return displays


def values(number, total=20, **more):
    return {
        "epoch": Progress(number, total),
        "train/loss": 1 / number,
        "val/loss": 2 / number,
        "val/accuracy": 0.25,
        "system/loss": 3.0,
        "time/epoch_seconds": 2.0,
        "time/steps_per_second": 1234.5,
    } | more


def course(*epochs):
    display = NotebookDisplay(RunDisplay.from_values(epochs[0]))
    for one in epochs:
        display.add(28 * one["epoch"].done, one)
    return display


def test_a_run_leaves_one_display_with_its_curves_and_its_table(shown, state, phase):
    threads = threading.active_count()
    trainer.fit(state, phase, epochs=3, hooks=log_metrics(Console()))
    assert threading.active_count() == threads
    (display,) = shown
    assert "epoch 0/3" in display[0]["text/html"]
    last = display[-1]["text/html"]
    assert "3/3 epochs, 3 steps" in last
    assert re.search(r"<td>train/loss</td><td class=.right.>[\d.]+", last)
    assert last.count("<svg") == 1
    assert "<script" not in last
    assert display[-1]["text/plain"].startswith("epoch 3/3")


def test_it_is_updated_at_most_four_times_a_second(shown):
    console, began = Console(), time.monotonic()
    for number in range(1, 2001):
        console.write(number, values(number, 2000))
        time.sleep(3e-4)
    console.close()
    (display,) = shown
    assert 3 <= len(display) <= (time.monotonic() - began) / PAUSE + 2


def test_a_run_that_fails_leaves_what_it_reached(shown, state, phase):
    def fail(state, metrics):
        if int(state.epoch) == 2:
            raise RuntimeError("enough")
        return state

    with pytest.raises(RuntimeError, match="enough"):
        trainer.fit(state, phase, epochs=3, hooks=[fail, log_metrics(Console())])
    assert "1/3 epochs" in shown[0][-1]["text/html"]


def test_each_fit_has_a_display_of_its_own_and_a_complete_run_none(shown, state, phase):
    hook = log_metrics(Console())
    ended, _ = trainer.fit(state, phase, epochs=1, hooks=hook)
    trainer.fit(ended, phase, epochs=1, hooks=hook)
    trainer.fit(ended, phase, epochs=2, hooks=hook)
    assert [re.search(r"./. epochs", one[-1]["text/html"])[0] for one in shown] == [
        "1/1 epochs",
        "2/2 epochs",
    ]


def test_a_given_console_is_printed_to(shown):
    file = io.StringIO()
    Console(console=RichConsole(file=file)).write(28, values(1))
    assert file.getvalue().startswith("epoch  1/20")
    assert shown == []


def test_it_shows_progress_speed_time_left_and_the_newest_metrics():
    page = course(values(1), values(5, **{"<b>/loss": 0.5})).render()
    for word in ("epoch  5/20", "width: 25.0%", "25%", "1,234 steps/s", "6 s left", "0.2000"):
        assert word in page
    assert "&lt;b&gt;" in page
    assert "<b>/" not in page


def test_it_draws_losses_and_accuracies_and_no_curve_of_one_point():
    page = course(values(1), values(2), values(3)).render()
    assert page.count("<svg") == 2
    assert re.findall(r"<title>(\w+), epoch 2: ([\d.]+)", page) == [
        ("train", "0.5000"),
        ("val", "1.000"),
        ("val", "0.2500"),
    ]
    assert "system" not in page
    assert "<svg" not in course(values(1)).render()


def test_a_long_run_is_drawn_with_few_points():
    display = course(*(values(n, 5000, other=math.nan) for n in range(1, 5001)))
    assert len(display.render()) < 40_000
    assert len(display.render(over=True)) < 40_000


def test_it_shows_the_last_text_of_each_name_escaped():
    display = course(values(1))
    for number in (1, 2):
        display.add(28, {"epoch": Progress(number), "said": Text(f"<i>{number}\x1b[2J\n\udc80")})
    display.add(30, {"other": Text("Once")})
    for page in (display.render(), display.render(over=True)):
        assert "&lt;i&gt;2\\x1b[2J&#10;\\udc80" in page
        assert "&lt;i&gt;1" not in page
        assert "step 30" in page
        page.encode()
    assert display.render(over=True).count("1/20 epochs") == 1  # a text is no epoch


def test_it_shows_what_takes_long(monkeypatch):
    compiling = [OpenSpan("compile", "<train>", 12.4)]
    monkeypatch.setattr(console_display, "list_open_spans", lambda thread: compiling)
    run = RunDisplay(began=math.inf, epochs_before=0, progress=Progress(0, 20))
    run.thread = 0
    assert "compiling &lt;train&gt;, 12 s" in NotebookDisplay(run).render()


def test_a_run_without_an_end_and_other_kinds_of_values_are_shown():
    page = course(values(3, None, digit=Image(np.zeros((2, 2, 1))))).render()
    assert "epoch 3" in page
    assert "%</span>" not in page
    assert len(notebook_display.COLORS) == notebook_display.HUES


def test_it_holds_the_laws(shown, state):
    check_hook(log_metrics(Console()), state, {"loss": 1.0})
