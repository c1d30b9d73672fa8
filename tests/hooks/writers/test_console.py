"""The console: a bar on a terminal, lines elsewhere, a table at the end."""

from __future__ import annotations

import io
import logging
import math
import sys
import threading

import numpy as np
import pytest
from rich.console import Console as RichConsole
from rich.logging import RichHandler

import hooks
import trainer
from hooks.metric_logging import log_metrics
from hooks.testing import check_hook
from hooks.writers import console_display
from hooks.writers.console import Console
from hooks.writers.console_display import RunDisplay
from hooks.writers.console_layout import layout_rows
from hooks.writers.values import Image, Progress, Text
from hooks.writers.writer import ResumableWriter, Writer
from trainer.host.rendering.sparklines import BLOCKS, format_number, group_by_prefix
from trainer.host.time_spans import OpenSpan, StepProgress, list_open_spans


def rich(width=100, *, terminal=False):
    return RichConsole(
        file=io.StringIO(), width=width, force_terminal=terminal, force_interactive=terminal
    )


def epoch(number, total=20, **more):
    """The values that `log_metrics` writes for an epoch."""
    return {
        "epoch": Progress(number, total),
        "train/grad_norm": 12.5,
        "train/accuracy": 0.5,
        "train/loss": 1 / number,
        "time/epoch_seconds": 2.0,
        "time/steps_per_second": 1234.5,
        "time/hook/log_metrics": 1e-5,
        "system/host_memory_gb": 1.5,
        "val/loss": 2 / number,
        "val/accuracy": 0.25,
    } | more


def shown(renderable, width=100):
    console = rich(width)
    console.print(renderable)
    return console.file.getvalue()


def course(*epochs):
    run = RunDisplay.from_values(epochs[0])
    for values in epochs:
        run.add(28 * values["epoch"].done, values)
    return run


@pytest.fixture
def terminal():
    """A console on a terminal, closed at the end."""
    console = Console(console=rich(terminal=True))
    yield console
    console.close()


def test_it_is_a_writer_that_keeps_no_records():
    assert isinstance(Console(console=rich()), Writer)
    assert not isinstance(Console(console=rich()), ResumableWriter)


def test_it_writes_to_richs_shared_console(monkeypatch):
    console = rich()
    monkeypatch.setattr("rich._console", console)
    writer = Console()
    writer.write(28, epoch(1))
    assert console.file.getvalue().startswith("epoch  1/20")


def test_without_rich_it_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    with pytest.raises(ImportError) as raised:
        Console()
    assert 'pip install "entracte[console]"' in raised.value.__notes__[0]


def test_without_a_terminal_it_prints_an_aligned_line_per_epoch():
    console = rich(40)
    writer = Console(console=console)
    no_val = {name: value for name, value in epoch(2).items() if not name.startswith("val")}
    for values in (epoch(1), no_val, epoch(10)):
        writer.write(28, values)
    assert console.file.getvalue().splitlines() == [
        "epoch  1/20    1,234 steps/s  train/loss 1.000      train/accuracy 0.5000     "
        "val/loss 2.000      val/accuracy 0.2500",
        "epoch  2/20    1,234 steps/s  train/loss 0.5000     train/accuracy 0.5000",
        "epoch 10/20    1,234 steps/s  train/loss 0.1000     train/accuracy 0.5000     "
        "val/loss 0.2000     val/accuracy 0.2500",
    ]


def test_a_line_needs_neither_total_nor_speed():
    console = rich()
    writer = Console(console=console)
    writer.write(3, {"epoch": Progress(7), "size": 4.0, "digit": Image(np.zeros((2, 2, 1)))})
    assert console.file.getvalue() == "epoch 7  size 4.000\n"


def test_no_line_has_codes_for_terminals():
    console = rich()
    writer = Console(console=console)
    for place in range(1, 4):
        writer.write(28 * place, epoch(place))
    writer.close()
    assert "\x1b" not in console.file.getvalue()


def test_the_table_shows_last_lowest_and_highest_and_their_epochs():
    table = shown(course(epoch(1), epoch(2, **{"train/loss": 9.0}), epoch(3)).table(100))
    lines = [line.split() for line in table.splitlines()]
    assert lines[0] == ["3/20", "epochs,", "84", "steps,", "2", "s"]
    assert ["train/loss", "0.3333", "0.3333", "3", "9.000", "2"] in lines
    assert ["val/loss", "0.6667", "0.6667", "3", "2.000", "1"] in lines
    assert ["system/host_memory_gb", "1.500", "1.500", "1", "1.500", "1"] in lines
    assert "time/" not in table


def test_nan_is_neither_lowest_nor_highest():
    values = [{"epoch": Progress(n), "loss": loss} for n, loss in ((1, math.nan), (2, 1.0))]
    assert ["loss", "1.000", "1.000", "2", "1.000", "2"] in words(course(*values).table(100))
    values = [{"epoch": Progress(1), "loss": math.nan}]
    assert ["loss", "nan"] in words(course(*values).table(100))


def words(renderable):
    return [line.split() for line in shown(renderable).splitlines()]


def test_names_are_no_markup():
    run = course({"epoch": Progress(1), "loss[bold]": 1.0})
    assert "loss[bold]" in shown(run.table(100))
    assert "loss[bold]" in shown(run.bar(100))


def test_the_bar_shows_progress_speed_time_left_and_rows_of_metrics():
    first, train, val = shown(course(epoch(1), epoch(5)).bar(100)).splitlines()
    assert first.split("━")[0].strip() == "epoch  5/20"
    assert first.split("━")[-1].split() == ["25%", "1,234", "steps/s", "6", "s", "left"]
    loss, accuracy = ["loss", "0.2000", "█▁"], ["accuracy", "0.5000", "▁▁"]
    assert train.split() == ["train", *loss, *accuracy, "grad_norm", "12.50"]
    assert val.split() == ["val", "loss", "0.4000", "█▁", "accuracy", "0.2500", "▁▁"]
    assert train.index("accuracy") == val.index("accuracy")


def test_the_time_left_is_a_second_at_least_and_none_at_the_end():
    run = course(epoch(1), epoch(5))
    run.began = run.updated - 0.1
    assert "1 s left" in shown(run.bar(100))
    assert "left" not in shown(course(epoch(1), epoch(20)).bar(100))


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 200])
def test_the_bar_fits(width):
    lines = shown(course(epoch(12)).bar(width), width).splitlines()
    assert len(lines) == 3
    assert all(len(line) <= width for line in lines)


def test_curves_are_left_out_if_they_do_not_all_fit():
    wide, narrow = (shown(course(epoch(1), epoch(2)).bar(width), width) for width in (100, 60))
    assert ("█" in wide, "█" in narrow) == (True, False)
    assert "█" not in shown(course(epoch(1), epoch(2)).bar(100, curves=False))


def test_the_table_has_curves_as_wide_as_there_is_room_for():
    run = course(*(epoch(n) for n in range(1, 31)))
    widths = []
    for width in (66, 72, 120):
        (line,) = [
            line
            for line in shown(run.render_summary(rich(width)), width).splitlines()
            if line.split()[:1] == ["train/loss"]
        ]
        widths.append(sum(char in BLOCKS for char in line))
        assert line.split()[:6] == ["train/loss", "0.03333", "0.03333", "30", "1.000", "1"]
    assert widths[0] == 0
    assert 6 <= widths[1] < widths[2] == 20


def test_a_console_without_blocks_has_no_curves():
    file = io.TextIOWrapper(io.BytesIO(), "ascii")
    writer = Console(console=RichConsole(file=file, width=120))
    for place in (1, 2):
        writer.write(28 * place, epoch(place))
    writer.write(56, {"sample": Text("caf\u00e9 \udc80")})
    writer.close()
    file.flush()
    text = file.buffer.getvalue().decode("ascii")
    assert "    caf\\xe9 \\udc80\n" in text
    assert "course" not in text


def test_without_a_terminal_a_text_is_plain_lines_and_no_epoch():
    console = rich(40)
    writer = Console(console=console)
    text = Text("[bold]Once[/]\nupon a time")
    writer.write(28, {"epoch": Progress(1, 20), "sample/said": text})
    writer.write(28, epoch(1))
    writer.write(30, {"sample": Text("x" * 50)})
    first, *said, line, second, long = console.file.getvalue().splitlines()
    assert (first, said) == ("sample/said, epoch 1", ["    [bold]Once[/]", "    upon a time"])
    assert line.startswith("epoch  1/20")
    assert (second, long) == ("sample, step 30", "    " + "x" * 50)
    writer.close()
    assert console.file.getvalue().count("1/20 epochs") == 1


def test_a_text_alone_makes_no_table():
    console = rich()
    writer = Console(console=console)
    writer.write(28, {"epoch": Progress(1, 20), "sample": Text("Once")})
    writer.close()
    assert console.file.getvalue() == "sample, epoch 1\n    Once\n"


def test_on_a_terminal_a_text_is_framed_above_the_bar(terminal):
    terminal.write(28, epoch(1))
    before = len(terminal._console.file.getvalue())
    terminal.write(28, {"epoch": Progress(1, 20), "sample": Text("[b]Once[/] upon\x1b[2J")})
    after = terminal._console.file.getvalue()[before:]
    assert "╭─" in after
    assert "sample, epoch 1" in after
    assert "[b]Once[/] upon\\x1b[2J" in after
    assert "━" in after[after.index("╰") :]  # the bar is drawn again below


def test_a_record_before_the_first_epoch_is_written_does_not_hide_how_long_it_took():
    run = course({"epoch": Progress(1, 20), "sample/length": 3.0}, epoch(1))
    assert 36 < run.seconds_left() <= 38.1  # 19 epochs of 2 seconds


def test_records_before_training_are_no_epoch():
    run = course({"epoch": Progress(0), "val/loss": 2.5}, epoch(1))
    assert 36 < run.seconds_left() <= 38.1  # 19 epochs of 2 seconds
    assert run.summaries["val/loss"].highest == (2.5, 0)


def test_scores_of_layers_are_only_in_the_table():
    run = course(epoch(1, **{"gradients/norm/hidden/0": 0.25}))
    assert "gradients" not in shown(run.bar(100)) + run.line()
    assert "gradients/norm/hidden/0" in shown(run.table(100))


def test_cells_of_a_confusion_matrix_are_not_shown():
    cells = {f"val/confusion/{label}/{predicted}": 1.0 for label in "01" for predicted in "01"}
    run = course({"epoch": Progress(1, 2), "val/loss": 0.5, **cells})
    assert run.line() == "epoch 1/2  val/loss 0.5000"
    assert "confusion" not in shown(run.bar(100)) + shown(run.table(100))


def test_metrics_that_do_not_fit_are_left_out_whole():
    (row,) = layout_rows({"train/loss": 0.5, "train/accuracy": 0.25, "train/norm": 1.0}, 45)
    assert row.plain.split() == ["train", "loss", "0.5000", "accuracy", "0.2500"]


def test_the_bar_keeps_the_newest_value_of_rare_metrics():
    no_val = {name: value for name, value in epoch(2).items() if not name.startswith("val")}
    assert "2.000" in shown(course(epoch(1), no_val).bar(100)).splitlines()[2]


def test_a_run_without_an_end_has_a_bar():
    line = shown(course(epoch(3, None)).bar(100)).splitlines()[0]
    assert "epoch 3" in line
    assert "left" not in line
    assert "%" not in line


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.000"), (-0.5, "-0.5000"), (999.94, "999.9"), (1e6, "1,000,000"), (math.inf, "inf")],
)
def test_numbers_have_four_digits(value, text):
    assert format_number(value) == text


def test_names_without_a_prefix_make_a_group():
    assert group_by_prefix(["gap", "train/loss"]) == {"": ["gap"], "train": ["train/loss"]}


def test_on_a_terminal_a_bar_is_drawn_and_removed(terminal):
    threads = threading.active_count()
    terminal.write(28, epoch(1))
    assert threading.active_count() == threads + 1
    terminal._live.refresh()
    refreshing = terminal._live._refresh_thread
    drawn = terminal._console.file.getvalue()
    assert "train/loss" not in drawn
    assert "━" in drawn
    terminal.close()
    refreshing.join(5)
    assert threading.active_count() == threads
    assert "train/loss" in terminal._console.file.getvalue()[len(drawn) :]


def test_log_records_and_prints_appear_above_the_bar(terminal):
    log = logging.getLogger("entracte")
    log.addHandler(RichHandler(console=terminal._console, show_path=False))
    log.setLevel(logging.INFO)
    out = sys.stdout
    terminal.write(28, epoch(1))
    log.info("saved")
    print("printed")
    text = terminal._console.file.getvalue()
    for word in ("saved", "printed"):
        after = text[text.index(word) :]
        assert "\x1b[2K" in text[: text.index(word)]  # the bar was erased before
        assert "━" in after  # and drawn again below
    assert sys.stdout is not out  # replaced by rich
    terminal.close()
    assert sys.stdout is out


def test_the_bar_is_removed_when_a_run_fails(state, phase):
    def fail(state, metrics):
        if int(state.epoch) == 2:
            raise RuntimeError("enough")
        return state

    console = rich(terminal=True)
    out = sys.stdout
    with pytest.raises(RuntimeError, match="enough"):
        trainer.fit(state, phase, epochs=3, hooks=[fail, log_metrics(Console(console=console))])
    assert sys.stdout is out
    assert console.file.getvalue().endswith("\n")
    assert "1/3 epochs" in console.file.getvalue()
    with console.status("another display can start"):
        pass


def test_a_second_fit_gets_a_bar_and_a_table_of_its_own(state, phase):
    console = rich()
    hook = log_metrics(Console(console=console))
    second, _ = trainer.fit(state, phase, epochs=2, hooks=hook)
    trainer.fit(second, phase, epochs=3, hooks=hook)
    text = console.file.getvalue()
    assert "2/2 epochs, 2 steps" in text
    assert "3/3 epochs, 3 steps" in text
    assert [line[:9] for line in text.splitlines() if line.startswith("epoch")] == [
        "epoch 1/2",
        "epoch 2/2",
        "epoch 3/3",
    ]


def test_closing_without_an_epoch_prints_nothing():
    console = rich()
    writer = Console(console=console)
    writer.flush()
    writer.close()
    assert console.file.getvalue() == ""


def test_it_holds_the_laws(state):
    check_hook(log_metrics(Console(console=rich())), state, {"loss": 1.0})


def bar(run, doing, monkeypatch):
    """Draw the bar while the run does something."""
    monkeypatch.setattr(console_display, "list_open_spans", lambda thread: doing)
    run.thread = 0
    return shown(run.bar(100))


def test_the_bar_shows_that_the_first_phase_compiles(monkeypatch):
    run = RunDisplay(began=math.inf, epochs_before=0, progress=Progress(0, 20))
    drawn = bar(run, [OpenSpan("compile", "train", 12.4)], monkeypatch)
    assert "epoch  0/20" in drawn
    assert "compiling train, 12 s" in drawn
    assert "left" not in drawn  # unknown yet
    assert "compiling" not in bar(run, [OpenSpan("compile", "train", 0.4)], monkeypatch)


@pytest.mark.parametrize(
    ("number", "seconds", "percent"), [(11, 0.0, 50), (11, 1.0, 52), (11, 99.0, 55), (10, 9.0, 50)]
)
def test_within_an_epoch_the_bar_advances_by_the_time_of_earlier_ones(
    monkeypatch, number, seconds, percent
):
    run = RunDisplay(
        began=0.0, epochs_before=0, updated=20.0, progress=Progress(10, 20)
    )  # two seconds each
    doing = [OpenSpan("epoch", "", seconds, number), OpenSpan("wait", "train", seconds)]
    drawn = bar(run, doing, monkeypatch)
    assert f"{percent}%" in drawn
    assert ("train, 99 s of this epoch" in drawn) == (seconds == 99.0)


@pytest.mark.parametrize(
    ("done", "total", "said"),
    [
        (0, 200, " 0% train, 0 of 200 steps, 10 s of this epoch"),
        (50, 200, " 5% 3.2 min left train, 50 of 200 steps, 10 s of this epoch"),
        (50, None, " 0% train, 50 steps, 10 s of this epoch"),
    ],
)
def test_in_the_first_epoch_it_advances_by_steps_and_shows_the_time_left(
    monkeypatch, done, total, said
):
    run = RunDisplay(began=math.inf, epochs_before=0, progress=Progress(0, 5))
    epoch = OpenSpan("epoch", "", 10.0, 1, (StepProgress("train", done, total),))
    drawn = bar(run, [epoch, OpenSpan("wait", "train", 9.0)], monkeypatch)
    assert " ".join(drawn.split()).replace("\u2501", "").endswith(said)


def test_the_bar_shows_what_a_hook_computes(monkeypatch):
    run = RunDisplay(began=0.0, epochs_before=0, updated=2.0, progress=Progress(1, 5))
    hook = OpenSpan("hook", "evaluate", 9.0, steps=(StepProgress("val", 30, 200),))
    doing = [OpenSpan("epoch", "", 11.0, 2), OpenSpan("event", "epoch", 9.0), hook]
    assert "hook evaluate, val 30 of 200 steps, 9 s" in bar(run, doing, monkeypatch)
    doing.append(OpenSpan("compile", "val", 8.0))
    assert "compiling val, 8 s" in bar(run, doing, monkeypatch)


def test_the_bar_is_full_after_the_last_epoch(monkeypatch):
    run = RunDisplay(began=0.0, epochs_before=0, updated=20.0, progress=Progress(199, 200))
    doing = [OpenSpan("epoch", "", 0.1, 200)]
    assert "99%" in bar(run, doing, monkeypatch)
    run.progress = Progress(200, 200)
    assert "100%" in bar(run, doing, monkeypatch)


def test_from_the_start_a_terminal_shows_what_a_run_does(state, phase):
    console = Console(console=rich(terminal=True))
    seen = []

    def look(state, metrics):
        with console._console.capture() as drawn:
            console._console.print(console._run.bar(100))
        seen.append(drawn.get())
        seen.append([(one.kind, one.name) for one in list_open_spans(threading.get_ident())])
        return state

    first = hooks.on("start", hooks.observe(look))
    trainer.fit(state, phase, epochs=3, hooks=[log_metrics(console), first])
    assert "epoch 0/3" in seen[0]
    assert "3/3 epochs" in console._console.file.getvalue()
    assert console._live is None
    assert list_open_spans(threading.get_ident()) == []
    trainer.fit(state.replace(stop=True), phase, epochs=3, hooks=log_metrics(console))
    assert console._console.file.getvalue().count("epochs, ") == 1  # nothing was trained


def test_a_file_shows_nothing_before_the_first_epoch():
    console = rich()
    writer = Console(console=console)
    writer.begin(Progress(0, 3))
    writer.close()
    assert console.file.getvalue() == ""
