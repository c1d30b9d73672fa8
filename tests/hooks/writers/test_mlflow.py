"""Records in MLflow: read back through its own client."""

import json
import logging
import math
import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest

import hooks
import trainer
from hooks import testing
from hooks.writers.values import Histogram, Image, Progress, Text, Trace, Video
from hooks.writers.writer import DryRunWriter, ResumableWriter, Writer

CHILD = """
import sys
import hooks

writer = hooks.MLflow(sys.argv[1])
writer.resume(0, 0)
writer.write(1, {"loss": 1.0})
writer.close()
"""
"""Creates a database, which takes MLflow seconds."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A directory in which a process without a network recorded a run."""
    for package in ("mlflow", "sqlalchemy", "alembic"):
        pytest.importorskip(package)
    directory = tmp_path_factory.mktemp("made")
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "CI"))
    }
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.settimeout(0)
        url = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), url)
        command = [sys.executable, "-c", CHILD, str(directory)]
        subprocess.run(command, env=kept | proxies, timeout=90, check=True, cwd=directory)
        with pytest.raises(BlockingIOError):  # a connection to the network would arrive here
            proxy.accept()
    assert [path.name for path in directory.iterdir()] == ["mlflow"]  # and no stray mlruns
    return directory


@pytest.fixture
def uri(made, tmp_path, monkeypatch):
    """A database for one test, without the test's experiment."""
    monkeypatch.chdir(tmp_path)  # MLflow's client leaves a folder there
    shutil.copy(made / "mlflow" / "mlflow.db", tmp_path / "copy.db")
    return f"sqlite:///{tmp_path / 'copy.db'}"


class Reader:
    """The runs of an experiment in MLflow."""

    def __init__(self, uri, experiment):
        from mlflow.entities import ViewType
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient(tracking_uri=uri)
        (place,) = [
            found.experiment_id
            for found in self.client.search_experiments()
            if found.name == experiment
        ]
        self.runs = self.client.search_runs([place])
        self.deleted = self.client.search_runs([place], run_view_type=ViewType.DELETED_ONLY)

    @property
    def run(self):
        (run,) = self.runs
        return run

    def points(self, name):
        history = self.client.get_metric_history(self.run.info.run_id, name)
        return [(metric.step, metric.value) for metric in history]

    def files(self, under=None):
        found = {}
        for file in self.client.list_artifacts(self.run.info.run_id, under):
            if file.is_dir:
                found |= self.files(file.path)
            else:
                found[file.path] = file.file_size
        return found


def test_it_is_a_writer_that_resumes_and_has_a_dry_run(tmp_path):
    writer = hooks.MLflow(tmp_path, enabled=False)
    for protocol in (Writer, ResumableWriter, DryRunWriter):
        assert isinstance(writer, protocol)


def test_it_needs_no_network(made):
    reader = Reader(f"sqlite:///{made / 'mlflow' / 'mlflow.db'}", "entracte")
    assert reader.run.info.run_name == made.name
    assert reader.points("loss") == [(1, 1.0)]
    assert reader.run.info.artifact_uri.startswith((made / "mlflow" / "artifacts").as_uri())


def test_each_kind_is_recorded_at_its_step(uri, tmp_path):
    run = tmp_path / "digits"
    config = {"seed": 1, "optimizer": {"rate": 0.1, "betas": [0.9, 0.99]}}
    writer = hooks.MLflow(run, uri=uri, experiment="kinds", config=config)
    frames = np.zeros((2, 4, 4, 3), np.uint8)
    writer.resume(0, 0)
    writer.write(3, {"epoch": Progress(1, 2), "loss": 0.5, "steps/loss": Trace(np.ones(3))})
    writer.write(3, {"epoch": Progress(1, 2), "said": Text("so"), "../b\x1b[2J": 3.0})
    writer.write(6, {"loss": math.nan, "large": math.inf, "video": Video(frames, 5)})
    writer.write(6, {"a/picture": Image(frames[0]), "weights": Histogram(np.arange(5))})
    writer.close()
    reader = Reader(uri, "kinds")
    assert set(reader.run.data.metrics) == {"epoch", "loss", "large", "b__2J"}
    assert reader.points("epoch") == [(3, 1.0)]
    (_, first), (_, second) = reader.points("loss")
    assert first == 0.5
    assert math.isnan(second)
    assert reader.points("large")[0][1] > 1e308
    assert reader.run.data.params == {
        "seed": "1",
        "optimizer/rate": "0.1",
        "optimizer/betas": "[0.9, 0.99]",
    }
    folder = tmp_path / "got"
    folder.mkdir()
    reader.client.download_artifacts(reader.run.info.run_id, "", str(folder))
    assert sorted(reader.files()) == [
        "config.json",
        "images/a/picture/6.png",
        "texts/said/3.txt",
        "videos/video/6.gif",
    ]
    assert json.loads((folder / "config.json").read_text()) == config
    assert (folder / "texts/said/3.txt").read_text() == "so"
    assert (folder / "videos/video/6.gif").read_bytes()[:4] == b"GIF8"
    writer.write(9, {"loss": 0.25})
    writer.close()  # existing numbers, also NaN and infinity, are unchanged
    after = Reader(uri, "kinds")
    assert after.run.info.run_id == reader.run.info.run_id
    assert [step for step, _ in after.points("loss")] == [3, 6, 9]


def test_a_resumed_run_keeps_its_id_and_has_each_record_once(uri, state, phase, tmp_path):
    run = tmp_path / "run"

    def fit(epochs, *others):
        writer = hooks.MLflow(run, uri=uri, experiment="on", artifacts=run)
        saving = hooks.save_checkpoints(run, keep=2, max_cost=None)
        losses = hooks.record("loss", lambda s, m: m["train/loss"], writer)
        trainer.fit(state, phase, epochs=epochs, hooks=[losses, *others, saving])
        return Reader(uri, "on")

    first = fit(2)
    (run / "replays").mkdir()
    (run / "replays" / "2-0.json").write_text("{}")
    second = fit(4)
    assert second.run.info.run_id == first.run.info.run_id
    assert second.points("loss") == [(1, 3.0), (2, 1.5), (3, 0.75), (4, 0.375)]
    assert second.run.info.status == "FINISHED"
    files = second.files()
    assert {path.split("/")[1] for path in files if path.startswith("checkpoints")} == set("1234")
    assert files["replays/2-0.json"] == 2
    assert not (run / "mlflow" / "collected").exists()

    def fail(state, metrics):
        raise LookupError("lost")

    with pytest.raises(LookupError):
        fit(6, hooks.observe(fail))  # epoch 5 is recorded, but was never saved
    assert Reader(uri, "on").points("loss")[-1] == (5, 0.1875)
    again = fit(6)
    assert again.run.info.run_id == first.run.info.run_id  # the repeated epoch has the same numbers
    assert [step for step, _ in again.points("loss")] == [1, 2, 3, 4, 5, 6]
    assert again.deleted == []


def test_changed_numbers_replace_the_old_ones(uri, tmp_path):
    def write(step, epoch, loss):
        writer.write(step, {"epoch": Progress(epoch), "loss": loss})

    writer = hooks.MLflow(tmp_path / "run", uri=uri, experiment="back")
    for epoch in (1, 2, 3):
        write(epoch, epoch, 1.0)
    writer.close()
    before = Reader(uri, "back").run.info.run_id
    writer.resume(2, 2)
    write(3, 3, 2.0)
    writer.close()
    after = Reader(uri, "back")
    assert after.points("loss") == [(1, 1.0), (2, 1.0), (3, 2.0)]
    assert [run.info.run_id for run in after.deleted] == [before]
    after.client.delete_run(after.run.info.run_id)  # by a user, for example
    write(4, 4, 2.0)
    writer.close()
    assert len(Reader(uri, "back").points("loss")) == 4


def test_a_failure_to_deliver_does_not_end_the_run(made, state, phase, tmp_path, caplog):
    writer = hooks.MLflow(tmp_path / "run", uri=f"sqlite:///{tmp_path}/none/of/these.db")
    (tmp_path / "none").write_text("in the way")
    end, _ = trainer.fit(state, phase, epochs=2, hooks=hooks.log_metrics(writer))
    assert int(end.epoch) == 2
    assert "MLflow: the records were not delivered" in caplog.text
    with pytest.raises(OSError, match="none"):
        writer.deliver()


@pytest.mark.parametrize("missing", ["mlflow", "sqlalchemy", None])
def test_if_inactive_it_logs_that_once_and_does_nothing(
    missing, state, phase, tmp_path, monkeypatch, caplog
):
    caplog.set_level(logging.INFO, "entracte")
    if missing:
        monkeypatch.setitem(sys.modules, "mlflow.tracking", None if missing == "mlflow" else sys)
        monkeypatch.setitem(sys.modules, missing, None)
    writer = hooks.MLflow(tmp_path / "run", enabled=missing is not None)
    trainer.fit(state, phase, epochs=2, hooks=hooks.log_metrics(writer))
    writer.deliver()
    (told,) = [r.getMessage() for r in caplog.records if "MLflow" in r.getMessage()]
    assert "inactive" in told
    assert ('pip install "entracte[mlflow]"' in told) == bool(missing)
    assert not list(tmp_path.iterdir())


def test_it_holds_the_laws(state, tmp_path, monkeypatch):
    monkeypatch.setattr(hooks.MLflow, "deliver", lambda writer: None)
    testing.check_hook(hooks.log_metrics(hooks.MLflow(tmp_path)), state, {"train/loss": 1.0})
