"""Records in a store: each once, whatever ends the run and however often it resumes."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sqlite3
import subprocess
import sys

import numpy as np
import pytest

import hooks
import trainer
from hooks import Database, Progress, Text, Trace
from hooks.testing import check_hook
from trainer.runs import Run, Store
from trainer.runs.requests import list_requests

LIMIT = 60
"""Seconds after which a process has hung."""


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "digits")


def records(folder, name="digits"):
    """Return the records, except times, which differ from run to run."""
    with Store(folder) as store:
        return [one for one in store.records(name) if not one.name.startswith("time/")]


def row(folder, name="digits"):
    with Store(folder) as store:
        return store.run(name)


def saving(folder):
    return hooks.save_checkpoints(folder / "digits", max_cost=None)


def test_numbers_and_texts_are_recorded_by_epoch_and_step(run, tmp_path):
    database = Database(run)
    database.write(
        28,
        {
            "epoch": Progress(1, 20),
            "val/loss": np.float32(0.5),
            "gap": math.nan,
            "far": -math.inf,
            "text": Text("it's; DROP TABLE records --"),
            "steps/loss": Trace(np.ones(3)),
        },
    )
    database.close()
    found = {(one.name, one.epoch, one.step): one.value for one in records(tmp_path)}
    assert math.isnan(found.pop(("gap", 1, 28)))
    assert found == {
        ("val/loss", 1, 28): 0.5,
        ("far", 1, 28): -math.inf,
        ("text", 1, 28): "it's; DROP TABLE records --",
    }


def test_a_writer_may_be_written_to_without_an_epoch(run, tmp_path):
    database = Database(run)
    database.write(3, {"loss": 1.0})
    database.close()
    assert records(tmp_path) == [("loss", 0, 3, 1.0)]


def test_it_needs_a_run():
    with pytest.raises(TypeError, match="Database takes a recorded run.*got 'runs/digits'"):
        Database("runs/digits")


def test_all_epochs_of_a_run_are_recorded_and_it_is_finished(state, phase, run, tmp_path):
    logging = hooks.log_metrics(Database(run))
    _, history = trainer.fit(state, phase, epochs=3, hooks=logging)
    losses = [one for one in records(tmp_path) if one.name == "train/loss"]
    assert losses == [
        ("train/loss", n, n, epoch["train/loss"]) for n, epoch in enumerate(history, 1)
    ]
    assert row(tmp_path).state == "finished"


@pytest.mark.parametrize(
    ("number", "error"),
    [(1, trainer.Interrupt), (3, trainer.Interrupt), (2, ValueError), (2, KeyboardInterrupt)],
)
def test_law_5_a_run_that_resumes_has_each_record_once(state, phase, tmp_path, number, error):
    def end_early(state, metrics):
        if int(state.epoch) == number:
            raise error("enough")
        return state

    def go(folder, *others):
        database = Database(Run(folder / "digits"))
        logging = [hooks.log_metrics(database), hooks.record("text", describe, database)]
        trainer.fit(state, phase, epochs=4, hooks=[*logging, *others, saving(folder)])

    def describe(state, metrics):
        return Text(f"epoch {int(state.epoch)}")

    go(tmp_path / "whole")
    try:
        go(tmp_path / "part", hooks.observe(end_early))
    except error:
        ended = "failed" if error is ValueError else "interrupted"
        assert row(tmp_path / "part").error == ("ValueError: enough" if ended == "failed" else "")
    else:
        ended = "interrupted"
    assert row(tmp_path / "part").state == ended
    go(tmp_path / "part")
    assert records(tmp_path / "part") == records(tmp_path / "whole")
    assert len(records(tmp_path / "part")) == 8
    assert row(tmp_path / "part").state == "finished"


def test_a_run_that_is_started_again_after_a_failure_is_finished(state, phase, run, tmp_path):
    def fail(state, metrics):
        raise ValueError("no")

    logging = hooks.log_metrics(Database(run))
    try:
        trainer.fit(state, phase, epochs=1, hooks=[logging, fail])
    except ValueError:
        assert row(tmp_path).state == "failed"
        trainer.fit(state, phase, epochs=1, hooks=logging)
    assert row(tmp_path).state == "finished"


def _leaving(folder, *, fail):
    """Return a hook that writes a plot and a replay in the run's directory when it is closed."""

    def close(error):
        (folder / "digits" / "history.png").write_text("some")
        (folder / "digits" / "replays").mkdir()
        (folder / "digits" / "replays" / "2-0.gif").write_text("more")

    def run(state, metrics):
        if fail:
            raise ValueError("no")
        return state

    return trainer.Hook(run, "leave", close=close)


@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_files_that_hooks_write_on_close_are_recorded_wherever_they_stand(
    state, phase, run, tmp_path, first, fail
):
    leaving, logging = _leaving(tmp_path, fail=fail), hooks.log_metrics(Database(run))
    chain = [logging, hooks.heartbeat(run), leaving]
    with contextlib.suppress(ValueError):
        trainer.fit(state, phase, epochs=2, hooks=chain if first else chain[::-1])
    with Store(tmp_path) as store:
        found = [(file.path, file.kind) for file in store.artifacts("digits")]
    folder = tmp_path / "digits"
    assert found == [
        (f"{folder}/history.png", "plot"),
        (f"{folder}/replays/2-0.gif", "replay"),
    ]
    assert row(tmp_path).state == ("failed" if fail else "finished")
    assert not run.is_recording


CHILD = """
import os, signal, sys
import hooks, jax, jax.numpy as jnp, trainer

folder, last = sys.argv[1], int(sys.argv[2])

def halve(state, data):
    size = jnp.abs(state.params["w"]).sum()
    return state.replace(params={"w": state.params["w"] / 2}, step=state.step + 1), None, {
        "loss": size
    }

def die(state, metrics):
    if int(state.epoch) == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return state

run = trainer.runs.Run(folder + "/digits")
chain = [
    hooks.log_metrics(hooks.Database(run)),
    hooks.heartbeat(run),
    hooks.request_evaluation(run, "full"),
    hooks.observe(die),
    hooks.save_checkpoints(folder + "/digits", max_cost=None, keep=9),
]
start = trainer.TrainState.create(params={"w": jnp.array([1.0, -2.0])}, rng=jax.random.key(0))
trainer.fit(start, trainer.Phase("train", halve), epochs=4, hooks=chain)
"""


def spawn(folder, last):
    command = [sys.executable, "-c", CHILD, str(folder), str(last)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, timeout=LIMIT, env=environment, capture_output=True, text=True)


def test_law_5_a_kill_loses_and_duplicates_nothing(tmp_path, monkeypatch):
    killed = spawn(tmp_path / "part", 2)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    for folder in ("part", "whole"):  # in this process, resumed and uninterrupted
        monkeypatch.setattr(sys, "argv", ["", str(tmp_path / folder), "-1"])
        exec(CHILD, {})
    assert records(tmp_path / "part") == records(tmp_path / "whole")
    assert len(records(tmp_path / "part")) == 4
    for folder in ("part", "whole"):
        with Store(tmp_path / folder) as store:
            requested = list_requests(store, "digits")
        assert sorted(one.epoch for one in requested) == [1, 2, 3, 4]
        assert row(tmp_path / folder).state == "finished"


def test_records_from_before_training_stay(state, phase, run, tmp_path):
    def measure(state, metrics):
        return state.replace(scores={"val/loss": 9.0})

    database = Database(run)
    chain = [
        hooks.on("start", measure),
        hooks.log_metrics(database),
        hooks.record("text", lambda state, metrics: Text("hello"), database),
        hooks.heartbeat(run),
        hooks.request_evaluation(run, "full"),
        saving(tmp_path),
    ]
    trainer.fit(state, phase, epochs=1, hooks=chain)
    assert ("val/loss", 0, 0, 9.0) in records(tmp_path)


def test_a_locked_store_does_not_disturb_training(state, phase, run, tmp_path):
    other = sqlite3.connect(tmp_path / "store.sqlite", isolation_level=None)

    def hold(state, metrics):
        other.execute("BEGIN IMMEDIATE")
        return state

    def release(state, metrics):
        other.execute("COMMIT")
        return state

    holding = [hooks.on("start", hooks.observe(hold)), hooks.on("end", hooks.observe(release))]
    trainer.fit(state, phase, epochs=50, hooks=[hooks.log_metrics(Database(run)), *holding])
    other.close()
    epochs = [one.epoch for one in records(tmp_path) if one.name == "train/loss"]
    assert epochs == list(range(1, 51))


def test_law_3_it_changes_nothing(state, phase, run, tmp_path):
    alone, _ = trainer.fit(state, phase, epochs=3)
    chain = [hooks.log_metrics(Database(run)), hooks.heartbeat(run)]
    watched, _ = trainer.fit(state, phase, epochs=3, hooks=chain)
    assert trainer.fingerprint(alone) == trainer.fingerprint(watched)
    check_hook(hooks.log_metrics(Database(run)), state, {"train/loss": 1.0})


def test_a_dry_run_records_nothing(state, phase, run, tmp_path):
    def fail(state, metrics):
        raise RuntimeError("no")

    chain = [hooks.log_metrics(Database(run)), hooks.heartbeat(run), hooks.on("end", fail)]
    with pytest.raises(RuntimeError):
        trainer.fit(state, phase, epochs=1, hooks=chain, dry_run=True)
    with Store(tmp_path) as store:
        assert store.runs() == []
    assert not (tmp_path / "digits").exists()
