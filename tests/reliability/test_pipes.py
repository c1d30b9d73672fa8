"""Pipes and devices in the place of files: opening one would wait for its other end.

Each is refused by its kind, or replaced, within the time that a test may take.
"""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
from forging import make, restore, save

import hooks
import trainer
from hooks.reports.histories import read_curves
from trainer import data
from trainer.configuration import TrainingConfig, load_config, save_config
from trainer.host.atomic_files import atomic_replace
from trainer.host.safe_open import UnsafeFile
from trainer.rl.replays.replay_files import load_replay

SECONDS = 20


@pytest.fixture(autouse=True)
def impatient():
    """Interrupt a call that waits."""

    def late(number, frame):
        raise AssertionError(f"it waited for {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def pipe(path):
    """Put a pipe in the place of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return path


@pytest.mark.parametrize(
    "read",
    [
        lambda path: hooks.JsonLines(path),
        lambda path: read_curves(path),
        lambda path: load_replay(path),
        lambda path: load_config(path, TrainingConfig),
        lambda path: data.MemoryMap({"inputs": path}, batch_size=2),
        lambda path: data.Tokens(path, batch_size=2, length=4),
        lambda path: trainer.load_params(path, {"w": np.zeros(2)}),
        lambda path: trainer.runs.Store(path),
    ],
)
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_readers_of_files_refuse_it(tmp_path, read, kind):
    path = tmp_path / "file.db"
    pipe(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    reported = "named pipe" if kind == "pipe" else "a device"
    with pytest.raises(
        (OSError, ValueError), match=f"it is (a )?{reported}, and must be a|neither a run"
    ):
        read(path)


@pytest.mark.parametrize(
    "name",
    [
        *("7", "7.staged", "7.0123456789abcdef-1.staged", "7.replaced", "7.removed"),
        *("1/manifest.json", "2/manifest.json", "2/arrays", "2/arrays/process_0"),
    ],
)
def test_checkpoints_are_read_and_saved_beside_it(run, name):
    place = run / "checkpoints" / name
    if place.is_dir():
        place.rename(run / "aside")
    pipe(place)
    assert restore(run).epoch == (1 if name.startswith("2/") else 2)
    save(run, 7)
    assert restore(run).epoch == 7
    assert sorted(path.name for path in (run / "checkpoints").iterdir() if path.is_fifo()) == []


def test_a_run_records_beside_a_pipe_in_the_place_of_its_queue(tmp_path):
    run = trainer.runs.Run(tmp_path / "one")
    pipe(tmp_path / "one" / "queue.jsonl")
    with pytest.raises(UnsafeFile, match="it is a named pipe, and must be a regular file"):
        run.record(1, 1, {"loss": 0.5})
    pipe(tmp_path / "two" / "lock")
    with pytest.raises(OSError, match="it is no file of its own"):
        trainer.runs.Run(tmp_path / "two").record(1, 1, {"loss": 0.5})


@pytest.mark.parametrize("planted", ["pipe", "link"])
def test_a_replaced_file_is_written_to_no_other(tmp_path, planted):
    aside = tmp_path / "home" / "secret"
    aside.parent.mkdir()
    aside.write_text("own")
    run = tmp_path / "run"
    for name in ("config.yaml", f"config.yaml.{os.getpid()}.tmp", "alive.json", "alive.json.tmp"):
        pipe(run / name)
        if planted == "link":
            (run / name).unlink()
            (run / name).symlink_to(aside)
    save_config(TrainingConfig(seed=3), run / "config.yaml")
    hooks.heartbeat(run / "alive.json")(make(), {})
    with atomic_replace(run / "other") as beside:
        beside.write_text("new")
    assert load_config(run / "config.yaml", TrainingConfig).seed == 3
    assert '"epoch": 1' in (run / "alive.json").read_text()
    assert aside.read_text() == "own"
    assert not [path for path in run.iterdir() if path.is_symlink() or path.is_fifo()]


def test_links_and_pipes_among_artifacts_are_not_uploaded(run, tmp_path):
    from hooks.writers.trackers import link_artifacts

    (tmp_path / "secret").write_text("secret")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "key").write_text("secret")
    (run / "replays").mkdir()
    (run / "replays" / "2-0.gif").write_text("played")
    for folder, names in ((run / "replays", ["3-0.gif", "4-0.gif"]), (run / "checkpoints/2", "ab")):
        (folder / names[0]).symlink_to(tmp_path / "secret")
        pipe(folder / names[1])
    (run / "checkpoints" / "2" / "c").symlink_to(tmp_path / "secrets")
    link_artifacts(run, tmp_path / "collected")
    found = {path.name: path for path in (tmp_path / "collected").rglob("*") if not path.is_dir()}
    assert {"2-0.gif", "manifest.json"} <= found.keys()
    assert not {"3-0.gif", "4-0.gif", "a", "b", "c", "key"} & found.keys()
    assert not [path for path in found.values() if path.is_symlink() or path.is_fifo()]
