"""The report of a run: complete, self-contained, and safe to open whatever texts it has."""

from __future__ import annotations

import base64
import hashlib
import re
import threading
from html.parser import HTMLParser

import jax.numpy as jnp
import numpy as np
import pytest

import hooks
import trainer
from hooks.reports.report_page import Report, render_page
from hooks.testing import check_hook
from hooks.writers.json_lines import JsonLines
from trainer.host.machine import describe_environment
from trainer.host.rendering.panels import Curve

HOSTILE = (
    """</style></td><script>alert(1)</script><img src=x onerror="alert('x')"> & "quoted" \udc80"""
)


class Reader(HTMLParser):
    """Collects the tags, their attributes, and the text of table cells and headings."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.cells, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag in ("td", "h1", "h2", "h3", "dt", "dd", "script"):
            self.cells.append("")

    def handle_data(self, data):
        if self.cells:
            self.cells[-1] += data.rstrip("\n")


def reported(state, program, tmp_path, chain=(), epochs=3, **settings):
    lines = JsonLines(tmp_path / "metrics.jsonl")
    report = hooks.write_report(tmp_path / "report.html", records=lines.path, **settings)
    trainer.fit(state, program, epochs=epochs, hooks=[*chain, hooks.log_metrics(lines), report])
    return Reader((tmp_path / "report.html").read_text())


def test_a_report_shows_progress_scores_and_environment(state, phase, tmp_path):
    config = {"optimizer": {"name": "sgd", "rate": 0.1}, "hidden": (128, 64)}
    found = reported(state, phase, tmp_path, title="Halving", config=config).cells
    assert found[:7] == ["Halving", "outcome", "finished", "epochs", "3 of 3", "steps", "3"]
    at = found.index("train/loss")
    assert found[at + 1 : at + 4] == ["0.7500", "0.7500 at 3", "3.000 at 1"]
    for name, value in (
        ("optimizer.name", "sgd"),
        ("optimizer.rate", "0.1"),
        ("hidden", "[128, 64]"),
    ):
        assert found[found.index(name) + 1] == value
    for name, value in describe_environment().items():
        assert found[found.index(name) + 1] == value
    assert found[found.index("log_metrics") + 1].endswith("s")


def test_texts_of_some_epochs_are_shown_as_they_are(state, phase, tmp_path):
    lines = JsonLines(tmp_path / "metrics.jsonl")
    shown = f"{HOSTILE[:-1]}\n  at 1"
    text = hooks.record("said", lambda state, metrics: hooks.Text(shown), lines)
    report = hooks.write_report(tmp_path / "report.html", records=lines.path)
    trainer.fit(state, phase, epochs=2, hooks=[hooks.every(2, text), report])
    found = Reader((tmp_path / "report.html").read_text())
    assert found.cells[-4:-1] == ["said", "2", shown]
    assert ("class", "text") in found.attributes
    assert found.tags.count("script") == 1


def test_it_changes_nothing(start, train, tmp_path):
    plain, _ = trainer.fit(start, train, epochs=2)
    lines = JsonLines(tmp_path / "a.jsonl")
    report = hooks.write_report(tmp_path / "report.html", records=lines.path)
    told, _ = trainer.fit(start, train, epochs=2, hooks=[hooks.log_metrics(lines), report])
    assert trainer.fingerprint(plain) == trainer.fingerprint(told)


def test_an_interrupted_run_is_reported_as_interrupted(state, phase, tmp_path):
    def stop(state, metrics):
        return state.replace(stop=True)

    def interrupt(state, metrics):
        raise trainer.Interrupt("time is up")

    def fail(state, metrics):
        raise OSError("full")

    for hook, outcome in ((stop, "stopped early"), (interrupt, "interrupted")):
        found = reported(state, phase, tmp_path, [hooks.every(2, hook)])
        assert found.cells[2:5:2] == [outcome, "2 of 3"]
    with pytest.raises(OSError, match="full"):
        reported(state, phase, tmp_path, [hooks.every(2, fail)])
    assert Reader((tmp_path / "report.html").read_text()).cells[2:5:2] == ["failed", "2 of 3"]


def test_a_resumed_run_has_a_complete_report(state, phase, tmp_path):
    for epochs in (2, 4, 4):
        saving = hooks.save_checkpoints(tmp_path / "run", max_cost=None)
        found = reported(state, phase, tmp_path, [saving], epochs=epochs).cells
    assert found[2:7:2] == ["finished", "4", "4"]  # nothing was left to train
    at = found.index("train/loss")
    assert found[at + 2 : at + 4] == ["0.3750 at 4", "3.000 at 1"]


def test_the_page_is_self_contained_and_runs_its_own_script_alone(state, phase, tmp_path):
    found = reported(state, phase, tmp_path, config={"a": 1})
    text = (tmp_path / "report.html").read_text()
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text
    assert not re.search("fetch|XMLHttpRequest|import|innerHTML|eval", script)
    assert not {"link", "img", "iframe", "object", "base"} & set(found.tags)
    assert not {"src", "href", "onload", "onerror"} & {name for name, _ in found.attributes}
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text
    assert [file.name for file in tmp_path.glob("report*")] == ["report.html"]


def test_points_of_curves_wait_for_the_pointer_on_both_axes():
    curves = {"train/loss": Curve([1, 2], [1.0, 0.01]), "train/gain": Curve([1, 2], [-1.0, 1.0])}
    text = render_page(Report("a", {}, curves, {}, {}))
    attributes = Reader(text).attributes
    points = [value for name, value in attributes if name == "data-points"]
    logarithmic, linear, gain = points  # a loss is positive, a gain is not
    assert linear == logarithmic == "1 50.0 10.0 1.000;2 368.0 184.0 0.01000"
    assert gain == "1 50.0 184.0 -1.000;2 368.0 10.0 1.000"
    assert ("id", "log") in attributes


def test_the_last_confusion_matrix_is_a_table_and_no_curve():
    cells = {(0, 0): 3.0, (0, 1): 1.0, (1, 0): 0.0, (1, 1): 4.0}
    curves = {
        f"val/confusion/{label}/{predicted}": Curve([1, 2], [9.0, count])
        for (label, predicted), count in cells.items()
    }
    found = Reader(render_page(Report("a", {}, curves, {}, {})))
    assert found.cells[1].startswith("Confusion matrix of val, epoch 2")
    assert found.cells[2:8] == ["3", "1", "75.0%1", "", "4", "100.0%"]  # the 1 heads its row
    assert "svg" not in found.tags


def test_pictures_are_in_the_page_with_their_texts(state, phase, tmp_path):
    lines = JsonLines(tmp_path / "metrics.jsonl")
    shown = {"0/image": hooks.Image(np.zeros((8, 8, 1))), "0": hooks.Text(HOSTILE[:-1])}
    record = hooks.record("mistakes/val", lambda state, metrics: shown, lines)
    report = hooks.write_report(tmp_path / "report.html", records=lines.path)
    trainer.fit(state, phase, epochs=1, hooks=[record, report])
    text = (tmp_path / "report.html").read_text()
    found = Reader(text)
    assert found.tags.count("img") == 1
    attributes = dict(found.attributes)
    assert attributes["src"].startswith("data:image/png;base64,iVBORw0KGgo")
    assert attributes["alt"] == "mistakes/val/0/image"
    assert "img-src data:;" in text
    assert found.tags.count("script") == 1


def test_the_bar_of_times_has_phases_hooks_and_the_rest():
    curves = {f"time/hook/{name}": Curve([1], [1.0]) for name in "abcdefgh"}
    curves["time/epoch_seconds"] = Curve([1], [2.0])
    text = render_page(Report("a", {}, curves, {}, {}))
    shares = re.findall(r'style="--share:([\d.]+)" title="([\w ]+), ', text)
    wanted = [("0.2000", "phases"), *(("0.1000", name) for name in "abcdef")]
    assert shares == [*wanted, ("0.2000", "other hooks")]


def _unbroken(tags):
    return [tag for tag in tags if tag != "wbr"]


def test_hostile_texts_are_escaped():
    curves = {
        f"train/{HOSTILE}": Curve([1, 2], [1.0, 2.0]),
        f"time/hook/{HOSTILE}": Curve([1], [1.0]),
    }
    words = {HOSTILE: HOSTILE}
    clean = Reader(
        render_page(
            Report(
                "a",
                {"b": "c"},
                {"train/d": Curve([1, 2], [1.0, 2.0]), "time/hook/e": Curve([1], [1.0])},
                {"f": "g"},
                {"h": "i"},
            )
        )
    )
    hostile = Reader(render_page(Report(HOSTILE, words, curves, words, words)))
    assert _unbroken(hostile.tags) == _unbroken(clean.tags)
    assert {name for name, _ in hostile.attributes} == {name for name, _ in clean.attributes}
    assert hostile.cells.count(HOSTILE) >= 6


def test_pages_open_in_light_and_dark_and_on_narrow_screens():
    text = render_page(Report("a", {}, {}, {}, {}))
    assert "color-scheme: light dark" in text
    light, dark = (dict(re.findall(r"(--\w+): (#\w+)", part)) for part in text.split("dark) {")[:2])
    assert light.keys() == dark.keys() >= {"--ink", "--page", "--c0", "--c6"}
    assert 'name="viewport" content="width=device-width' in text


def test_the_title_defaults_to_the_folders_name(state, phase, tmp_path):
    assert reported(state, phase, tmp_path).cells[0] == tmp_path.name


def test_it_holds_the_laws(state, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"step": 1, "epoch": 1, "loss": 1.0}\n')
    state = state.replace(epoch=jnp.int32(1))
    check_hook(hooks.write_report(tmp_path / "r.html", records=tmp_path / "a.jsonl"), state, {})
    assert (tmp_path / "r.html").exists()


def test_the_report_has_what_was_logged_in_the_background(state, phase, tmp_path):
    class Slow(hooks.JsonLines):
        def write(self, step, values):
            threading.Event().wait(0.02)
            super().write(step, values)

    records, page = tmp_path / "lines.jsonl", tmp_path / "report.html"
    chain = hooks.chain(
        hooks.background(hooks.log_metrics(Slow(records))),
        hooks.write_report(page, records=records),
    )
    trainer.fit(state, phase, epochs=5, hooks=chain)
    assert "at 5" in page.read_text()  # where the loss is lowest
