"""A run's newest checkpoint, as often as there is another one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from trainer import Checkpoints, TrainState
from trainer.checkpoints import load, publishing
from trainer.checkpoints.arrays import array_storage
from trainer.checkpoints.poll import make_poller

WANTED = {"params": jnp.float32(0)}


def checkpoint(run, epoch, value=None, **settings):
    params = jnp.float32(epoch if value is None else value)
    state = TrainState.create(params=params, rng=jax.random.key(0))
    with Checkpoints(run, **settings) as checkpoints:
        checkpoints.save(state.replace(epoch=jnp.int32(epoch)))


def spoil(run, epoch):
    file = run / "checkpoints" / str(epoch) / "arrays" / "process_0"
    content = bytearray(file.read_bytes())
    rows = publishing.read_manifest(run / "checkpoints", epoch)["leaves"][""]
    (place,) = (row["pieces"][0]["offset"] for row in rows if row["path"] == "params")
    content[place] ^= 1
    file.write_bytes(content)


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


def read_newer(run):
    """Return a function that reads the wanted parts of the newer checkpoint."""
    poll_newer = make_poller(run)
    folder = run / "checkpoints"
    return lambda in_use: poll_newer(lambda n: load.read_part_at(folder, n, WANTED), in_use)


@pytest.fixture
def look(run):
    """Return epoch and value of the newer checkpoint, or None."""
    read = read_newer(run)

    def look(in_use):
        part = read(in_use)
        return None if part is None else (part.epoch, float(part.trees["params"]))

    return look


def test_the_newest_checkpoint_is_read_once(run, look, monkeypatch):
    reads = []
    real = load.read_part_at
    monkeypatch.setattr(load, "read_part_at", lambda *a: reads.append(a[1]) or real(*a))
    assert look(-1) is None  # the directory is not there yet
    checkpoint(run, 1)
    checkpoint(run, 2)
    assert look(-1) == (2, 2.0)
    assert look(2) is None
    checkpoint(run, 3, keep=1)  # removes 1 and 2
    assert look(2) == (3, 3.0)
    assert look(3) is None
    assert reads == [2, 3]


def test_a_resumed_process_knows_only_the_number(run):
    checkpoint(run, 2)
    assert read_newer(run)(2) is None
    assert read_newer(run)(1).epoch == 2


def test_a_damaged_checkpoint_is_reported_once_and_read_when_replaced(run, look, caplog):
    checkpoint(run, 1)
    checkpoint(run, 2)
    checkpoint(run, 3)
    spoil(run, 3)
    assert look(-1) == (2, 2.0)
    assert look(2) is None
    assert look(2) is None
    assert caplog.text.count("skipped a damaged checkpoint: checkpoint 3") == 1
    checkpoint(run, 3, value=33)
    assert look(2) == (3, 33.0)


def test_if_all_are_damaged_nothing_is_returned(run, look):
    checkpoint(run, 1)
    spoil(run, 1)
    assert look(-1) is None


def test_a_run_that_went_back_is_followed(run, look):
    for epoch in (1, 2, 3):
        checkpoint(run, epoch)
    assert look(-1) == (3, 3.0)
    publishing.remove_checkpoint(run / "checkpoints", 3, publishing.RunMemory().named)
    publishing.remove_checkpoint(run / "checkpoints", 2, publishing.RunMemory().named)
    assert look(3) == (1, 1.0)
    checkpoint(run, 2, value=22)
    assert look(1) == (2, 22.0)
    checkpoint(run, 2, value=222)  # another checkpoint of the same number
    assert look(2) == (2, 222.0)


def test_a_checkpoint_that_is_being_replaced_is_not_gone(run, look):
    checkpoint(run, 1)
    checkpoint(run, 2)
    assert look(-1) == (2, 2.0)
    folder = run / "checkpoints"
    (folder / "2").rename(folder / "2.replaced")
    assert look(2) is None
    (folder / "2.replaced").rename(folder / "2")
    assert look(2) is None


def test_a_checkpoint_removed_while_it_is_read_is_no_damage(run, look, monkeypatch, caplog):
    checkpoint(run, 1)
    real, overtaken = array_storage.load_arrays, []

    def read(path, size, ranges):
        if not overtaken:
            overtaken.append(path)
            checkpoint(run, 2, keep=1)
        return real(path, size, ranges)

    monkeypatch.setattr(array_storage, "load_arrays", read)
    assert look(-1) == (2, 2.0)
    assert overtaken[0].parent.parent.name == "1"
    assert "damaged" not in caplog.text


def test_a_link_in_the_place_of_the_checkpoints_is_refused(tmp_path, run):
    run.mkdir()
    (run / "checkpoints").symlink_to(tmp_path)
    with pytest.raises(NotADirectoryError, match="is a link"):
        make_poller(run)
