"""A journal has every record once after any interruption, and knows what was delivered."""

import logging
import math
import os
import sys

import numpy as np
import PIL.Image
import pytest

from hooks.writers import trackers
from hooks.writers.trackers import JournaledWriter, is_available, link_artifacts
from hooks.writers.values import Histogram, Image, Progress, Text, Trace, Video
from trainer import Checkpoints

HOSTILE = "../../step:\0\x1b[2J\ud800'; DROP TABLE runs; --"


class Tracker(JournaledWriter):
    """Delivers by calling a function, and nothing more."""

    def __init__(self, folder, deliver=None, *, active=True):
        self.deliver = deliver or self.mark_delivered
        self.open_journal(folder, active=active)


@pytest.fixture
def journal(tmp_path):
    return Tracker(tmp_path / "journal")


def numbers(journal):
    return [
        (row.step, {name: kept.value for name, kept in row.values.items()})
        for row in journal.rows()
    ]


def test_records_are_read_by_step(journal):
    grays = np.linspace(0, 1, 12).reshape(3, 4, 1)
    frames = np.stack([grays, 1 - grays])
    journal.write(3, {"epoch": Progress(1, 2), "loss": 0.5, "nan": math.nan, "inf": -math.inf})
    journal.write(3, {"epoch": Progress(1, 2), "said": Text("so"), "trace": Trace(np.ones(3))})
    journal.write(6, {"image": Image(grays), "video": Video(frames, 5)})
    journal.write(6, {"all": Histogram(np.array([1.0, 2.0, math.nan])), "none": Histogram([])})
    first, second = journal.rows()
    assert (first.step, second.step) == (3, 6)
    assert 0 <= second.unix_seconds - first.unix_seconds < 60
    values = {name: kept.value for name, kept in first.values.items()}
    assert math.isnan(values.pop("nan"))
    assert values == {"epoch": 1, "loss": 0.5, "inf": -math.inf, "said": "so"}
    kinds = {name: kept.kind for name, kept in second.values.items()}
    assert kinds == {"image": "image", "video": "video", "all": "histogram", "none": "histogram"}
    counts, edges = second.values["all"].value
    assert (counts.sum(), len(edges)) == (2, 65)
    assert second.values["none"].value[0].sum() == 0
    with PIL.Image.open(second.values["image"].value) as image:
        np.testing.assert_array_equal(image, (grays[..., 0] * 255).round())
    with PIL.Image.open(second.values["video"].value) as video:
        assert video.n_frames == 2


def test_hostile_names_stay_names(journal):
    names = [HOSTILE, "step", "_written", "number:a", "a", "epoch:"]
    picture = Image(np.zeros((2, 2, 3), np.uint8))
    journal.write(1, {name: float(place) for place, name in enumerate(names)})
    journal.write(2, dict.fromkeys(names, picture))
    first, second = journal.rows()
    assert {name: kept.value for name, kept in first.values.items()} == {
        name: place for place, name in enumerate(names)
    }
    files = {kept.value for kept in second.values.values()}
    assert len(files) == len(names)
    assert {file.parent.parent for file in files} == {journal.folder / "media"}


def test_a_resumed_run_has_each_record_once(journal):
    for step in (2, 4, 6):
        journal.write(step, {"epoch": Progress(step // 2), "loss": 1.0})
    journal.resume(4, 2)
    journal.write(6, {"epoch": Progress(3), "loss": 2.0})
    assert numbers(journal) == [
        (2, {"epoch": 1, "loss": 1.0}),
        (4, {"epoch": 2, "loss": 1.0}),
        (6, {"epoch": 3, "loss": 2.0}),
    ]
    journal.resume(0, 0)
    assert numbers(journal) == []


def test_new_records_are_delivered_once(journal, tmp_path):
    times = []

    def deliver():
        times.append(len(journal.rows()))
        journal.mark_delivered()

    journal.deliver = deliver
    journal.close()
    assert times == []
    journal.write(1, {"loss": 1.0})
    journal.close()
    journal.close()
    assert times == [1]
    journal.write(2, {"loss": 1.0})
    journal.flush()
    again = Tracker(journal.folder)  # like a process after one that was killed

    def deliver_again():
        times.append(len(again.rows()))
        again.mark_delivered()

    again.deliver = deliver_again
    again.close()
    again.close()
    assert times == [1, 2]
    journal.dry_run(3, {"loss": 1.0, "image": Image(np.zeros((2, 2, 1)))})
    journal.close()
    assert times == [1, 2]
    assert not (journal.folder / "media").exists()


def test_records_written_during_a_delivery_are_delivered_next(journal):
    journal.write(1, {"loss": 1.0})
    beside = Tracker(journal.folder)  # another process
    beside.rows()
    journal.write(2, {"loss": 1.0})
    beside.mark_delivered()
    times = []
    journal.deliver = lambda: times.append(len(journal.rows()))
    journal.close()
    assert times == [2]


def test_a_failure_to_deliver_is_logged_and_the_next_close_retries(journal, caplog):
    def fail():
        raise OSError("no server")

    journal.write(1, {"loss": 1.0})
    journal.deliver = fail
    journal.close()
    assert "Tracker: the records were not delivered; they are in " in caplog.text
    assert "no server" in caplog.text
    times = []
    journal.deliver = lambda: times.append(1)
    journal.close()
    assert times == [1]


def test_a_line_that_is_being_written_is_left_out(journal):
    journal.write(1, {"loss": 1.0})
    journal.flush()
    with (journal.folder / "journal.jsonl").open("a") as file:
        file.write('{"step": 2, "num')
    assert [row.step for row in journal.rows()] == [1]


def test_an_inactive_journal_records_and_creates_nothing(tmp_path):
    deliver = lambda: pytest.fail("there is nothing to deliver")  # noqa: E731
    journal = Tracker(tmp_path / "journal", deliver, active=False)
    journal.resume(0, 0)
    journal.write(1, {"loss": 1.0})
    journal.dry_run(1, {"loss": 1.0})
    journal.flush()
    journal.close()
    assert journal.rows() == []
    assert not list(tmp_path.iterdir())


def test_it_logs_why_a_tracker_is_inactive(caplog, monkeypatch):
    caplog.set_level(logging.INFO, "entracte")
    assert is_available("Tracker", "extra", True, "json", "os.path")
    assert caplog.records == []
    assert not is_available("Tracker", "extra", False, "json")
    assert "Tracker is disabled: it is inactive and records nothing" in caplog.text
    monkeypatch.setitem(sys.modules, "tracker", None)
    caplog.clear()
    assert not is_available("Tracker", "extra", True, "json", "tracker")
    (told,) = caplog.records
    assert 'pip install "entracte[extra]"' in told.getMessage()


@pytest.mark.parametrize("links", [True, False])
def test_artifacts_are_the_complete_checkpoints_and_the_replays(
    state, tmp_path, monkeypatch, links
):
    def refuse(*arguments, **settings):
        raise OSError("no links here")

    if not links:
        monkeypatch.setattr(trackers.os, "link", refuse)
    run, folder = tmp_path / "run", tmp_path / "collected"
    with Checkpoints(run) as checkpoints:
        for epoch in (1, 2, 3):
            checkpoints.save(state.replace(epoch=epoch), scores={"val/loss": 1 / epoch})
        (run / "replays").mkdir()
        (run / "replays" / "2-0.json").write_text("{}")
        (run / "replays" / "notes.txt").write_text("no replay")
        assert link_artifacts(run, folder) == {n: {"val/loss": 1 / n} for n in (1, 2, 3)}
    assert sorted(os.listdir(folder / "checkpoints")) == ["1", "2", "3"]
    assert os.listdir(folder / "replays") == ["2-0.json"]
    manifest = folder / "checkpoints" / "3" / "manifest.json"
    assert (manifest.stat().st_nlink > 1) == links
    (run / "checkpoints" / "1" / "manifest.json").write_text("damaged")
    (run / "replays" / "2-0.json").unlink()
    (run / "checkpoints" / "4.staged").mkdir()
    (run / "checkpoints" / "5").mkdir()
    assert list(link_artifacts(run, folder)) == [2, 3]
    assert sorted(os.listdir(folder / "checkpoints")) == ["2", "3"]
    with Checkpoints(folder, read_only=True) as copies:
        assert copies.restore(state.replace(epoch=0)).state.epoch == 3


def test_an_empty_directory_has_no_artifacts(tmp_path):
    assert link_artifacts(tmp_path / "none", tmp_path / "collected") == {}
    assert not list((tmp_path / "collected").iterdir())
