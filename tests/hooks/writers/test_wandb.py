"""Records for Weights & Biases: read back from the log that `wandb sync` uploads."""

import json
import logging
import os
import socket
import struct
import subprocess
import sys
import time

import numpy as np
import pytest

import hooks
import trainer
from hooks import testing
from hooks.writers.values import Histogram, Image, Progress, Text, Trace, Video
from hooks.writers.writer import DryRunWriter, ResumableWriter, Writer

BLOCK = 32768
"""Bytes; of a log of records that LevelDB made known: pieces of them with a head of 7 bytes."""


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    """The package, which leaves nothing outside of the test's folder."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for kind in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{kind}_DIR", str(tmp_path / "home" / kind))
    return pytest.importorskip("wandb")


@pytest.fixture(scope="module", autouse=True)
def _teardown():
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()


def records(directory, kind):
    """Read the records of a kind from the only log, once wandb's own process has ended it."""
    deadline = time.monotonic() + 60
    while not read_log(directory, "exit") and time.monotonic() < deadline:
        time.sleep(0.02)
    return read_log(directory, kind)


def read_log(directory, kind):
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = (directory / "wandb").glob("offline-run-*/*.wandb")
    content, place, pieces, found = file.read_bytes(), 7, b"", []
    while place + 7 <= len(content):
        if BLOCK - place % BLOCK < 7:
            place += BLOCK - place % BLOCK
            continue
        _, length, part = struct.unpack_from("<IHB", content, place)
        pieces = (
            content[place + 7 : place + 7 + length]
            if part in (1, 2)
            else (pieces + content[place + 7 : place + 7 + length])
        )
        place += 7 + length
        if part in (1, 4):
            record = Record.FromString(pieces)
            if record.WhichOneof("record_type") == kind:
                found.append(getattr(record, kind))
    return found


def rows(directory):
    """Read the history: (step, values) without those that begin with an underscore."""
    found = []
    for history in records(directory, "history"):
        values = {}
        for item in history.item:
            *path, last = [item.key] if item.key else item.nested_key
            inner = values
            for name in path:
                inner = inner.setdefault(name, {})
            inner[last] = json.loads(item.value_json)
        shown = {name: value for name, value in values.items() if not name.startswith("_")}
        found.append((values["_step"], shown))
    return found


def test_it_is_a_writer_that_resumes_and_has_a_dry_run(tmp_path):
    writer = hooks.WandB(tmp_path, enabled=False)
    for protocol in (Writer, ResumableWriter, DryRunWriter):
        assert isinstance(writer, protocol)


def test_each_kind_is_recorded_at_its_step_without_passwords(wandb, tmp_path, monkeypatch):
    url = "postgresql://me:hunter@host/runs"
    monkeypatch.setattr("sys.argv", ["train.py", "--store", url])
    config = {"seed": 1, "optimizer": {"rate": 0.1}, "store": url}
    writer = hooks.WandB(tmp_path / "digits", config=config)
    writer.resume(0, 0)
    writer.write(3, {"epoch": Progress(1, 2), "train/loss": 0.5, "steps/loss": Trace(np.ones(3))})
    writer.write(3, {"epoch": Progress(1, 2), "said": Text("<b>\ud800 so")})
    writer.write(6, {"epoch": Progress(2, 2), "train/loss": float("nan"), "a.b/../c": 1.0})
    frames = np.zeros((2, 4, 4, 3), np.uint8)
    writer.write(6, {"video": Video(frames, 5), "image": Image(frames[0])})
    writer.write(6, {"weights": Histogram(np.arange(5))})
    writer.close()
    (first, values), (second, media) = rows(tmp_path / "digits")
    assert (first, second) == (3, 6)
    said = values.pop("said")
    assert values == {"epoch": 1, "train/loss": 0.5}
    (folder,) = (tmp_path / "digits" / "wandb").glob("offline-run-*")
    assert (folder / "files" / said["path"]).read_text() == "<pre>&lt;b&gt;? so</pre>"
    assert np.isnan(media["train/loss"])
    assert (media["epoch"], media["a.b/../c"]) == (2, 1)
    kinds = {name: value["_type"] for name, value in media.items() if isinstance(value, dict)}
    assert kinds == {"video": "video-file", "image": "image-file", "weights": "histogram"}
    assert (folder / "files" / media["video"]["path"]).read_bytes()[:4] == b"GIF8"
    assert (folder / "files" / media["image"]["path"]).read_bytes()[1:4] == b"PNG"
    (run,) = records(tmp_path / "digits", "run")
    assert (run.project, run.display_name) == ("entracte", "digits")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["optimizer"] == {"rate": 0.1}
    files = [path for path in (tmp_path / "digits").rglob("*") if path.is_file()]
    assert [path for path in files if b"hunter" in path.read_bytes()] == []
    assert sys.argv[2] == url
    assert wandb.run is None  # the user's own run would have stayed open


def test_a_resumed_run_keeps_its_id_and_has_each_record_once(wandb, state, phase, tmp_path):
    def fit(epochs):
        writer = hooks.WandB(tmp_path, artifacts=tmp_path)
        saving = hooks.save_checkpoints(tmp_path, keep=2, max_cost=None)
        image = hooks.record("image", lambda s, m: Image(np.zeros((2, 2, 3))), writer)
        chain = [hooks.log_metrics(writer), image, saving]
        trainer.fit(state, phase, epochs=epochs, hooks=chain)
        return records(tmp_path, "run")[0].run_id

    first = fit(2)
    (tmp_path / "replays").mkdir()
    (tmp_path / "replays" / "2-0.json").write_text("{}")
    beyond = {"step": 3, "epoch": 3, "number:train/loss": 7.0}  # left by a process that was killed
    with (tmp_path / "wandb" / "journal.jsonl").open("a") as file:
        file.write(json.dumps(beyond) + "\n")
    assert fit(4) == first
    history = rows(tmp_path)
    assert [(step, values["epoch"]) for step, values in history] == [(n, n) for n in (1, 2, 3, 4)]
    assert [values["train/loss"] for _, values in history] == [3, 1.5, 0.75, 0.375]
    assert all(values["image"]["_type"] == "image-file" for _, values in history)
    (*checkpoints, replays) = records(tmp_path, "artifact")
    aliases = [sorted(saved.aliases) for saved in checkpoints]
    assert aliases == [["epoch-3", "latest"], ["epoch-4", "latest"]]
    assert {saved.name for saved in checkpoints} == {f"checkpoint-{first}"}
    assert (replays.name, replays.type) == (f"replays-{first}", "replay")
    assert [entry.path for entry in replays.manifest.contents] == ["2-0.json"]
    for entry in checkpoints[0].manifest.contents:
        assert entry.local_path.startswith(str(tmp_path / "wandb" / "artifacts"))
        assert os.path.getsize(entry.local_path) == entry.size
    assert {"manifest.json", "arrays/process_0"} <= {
        e.path for e in checkpoints[0].manifest.contents
    }


CHILD = """
import sys
import hooks

writer = hooks.WandB(sys.argv[1])
writer.resume(0, 0)
writer.write(1, {"loss": 1.0})
writer.close()
"""


def test_it_needs_no_network(wandb, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.settimeout(0)
        url = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        names = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
        proxies = dict.fromkeys(names, url)
        command = [sys.executable, "-c", CHILD, str(tmp_path)]
        subprocess.run(command, env={**os.environ, **proxies}, timeout=60, check=True)
        with pytest.raises(BlockingIOError):  # a connection to the network would arrive here
            proxy.accept()
    assert rows(tmp_path) == [(1, {"loss": 1})]


def test_a_failure_to_deliver_does_not_end_the_run(
    wandb, state, phase, tmp_path, monkeypatch, caplog
):
    def fail(**settings):
        raise OSError("the service did not start")

    monkeypatch.setattr(wandb, "init", fail)
    writer = hooks.WandB(tmp_path)
    end, _ = trainer.fit(state, phase, epochs=2, hooks=hooks.log_metrics(writer))
    assert int(end.epoch) == 2
    assert "WandB: the records were not delivered" in caplog.text
    with pytest.raises(OSError, match="did not start"):
        writer.deliver()


@pytest.mark.parametrize("why", ["absent", "switched off", "disabled"])
def test_if_inactive_it_logs_that_once_and_does_nothing(
    why, state, phase, tmp_path, monkeypatch, caplog
):
    caplog.set_level(logging.INFO, "entracte")
    if why == "absent":
        monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setenv("WANDB_MODE", "disabled" if why == "disabled" else "offline")
    writer = hooks.WandB(tmp_path / "run", enabled=why != "switched off")
    trainer.fit(state, phase, epochs=2, hooks=hooks.log_metrics(writer))
    writer.deliver()
    (told,) = [r.getMessage() for r in caplog.records if "WandB" in r.getMessage()]
    assert "inactive" in told
    assert ('pip install "entracte[wandb]"' in told) == (why == "absent")
    assert not list(tmp_path.iterdir())


def test_it_holds_the_laws(state, tmp_path, monkeypatch):
    monkeypatch.setattr(hooks.WandB, "deliver", lambda writer: None)
    testing.check_hook(hooks.log_metrics(hooks.WandB(tmp_path)), state, {"train/loss": 1.0})
