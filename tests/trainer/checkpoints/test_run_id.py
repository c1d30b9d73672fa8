"""Which run a checkpoint is of: a foreign one is refused, whole directories may move."""

from __future__ import annotations

import logging
import shutil

import jax
import jax.numpy as jnp
import pytest

import hooks
import trainer
from trainer import Checkpoints, TrainState
from trainer.checkpoints import manifest, run_id
from trainer.checkpoints.arrays.damage import DamagedCheckpoint
from trainer.checkpoints.load import read_part
from trainer.checkpoints.run_id import ForeignCheckpoint


def make(epoch, seed=0):
    """A state that tells its epoch and its run."""
    params = {"w": jnp.full(3, 10.0 * seed + epoch)}
    state = TrainState.create(params=params, rng=jax.random.key(seed))
    return state.replace(epoch=jnp.int32(epoch))


def save(run, *epochs, seed=0, **settings):
    with Checkpoints(run, **settings) as checkpoints:
        for epoch in epochs:
            checkpoints.save(make(epoch, seed), scores={"loss": 1.0})
    return run


def restore(run, **settings):
    with Checkpoints(run, read_only=True) as checkpoints:
        return checkpoints.restore(make(0), **settings)


def copy(source, epoch, target):
    """Copy a checkpoint of one run among those of another."""
    place = target / "checkpoints" / str(epoch)
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(source / "checkpoints" / str(epoch), place)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Two runs of the same structure, each with the checkpoints of epochs 1 to 3."""
    return [save(tmp_path_factory.mktemp(f"run{n}"), 1, 2, 3, seed=n) for n in (0, 1)]


@pytest.fixture
def runs(originals, tmp_path):
    return [shutil.copytree(run, tmp_path / run.name) for run in originals]


def test_the_id_is_in_each_manifest_and_in_a_file_and_stays(runs):
    ids = [run_id.read_run_id(run / "checkpoints") for run in runs]
    assert len({*ids, None}) == 3
    save(runs[0], 4)
    with Checkpoints(runs[0], read_only=True) as checkpoints:
        assert {checkpoints.manifest(n)["run"] for n in checkpoints.epochs()} == {ids[0]}
    assert (runs[0] / "run_id").read_text() == f"{ids[0]}\n"


@pytest.mark.parametrize("epoch", [3, 4])
def test_a_checkpoint_of_another_run_is_refused_with_both_ids(runs, epoch):
    one, other = runs
    if epoch == 4:
        save(other, 4, seed=1)
    copy(other, epoch, one)
    mine, theirs = (run_id.read_run_id(run / "checkpoints") for run in runs)
    told = f"checkpoint {epoch} in .* is of another run: it is of {theirs}, and .* {mine}"
    with pytest.raises(ForeignCheckpoint, match=f"{told}: move away .*foreign=True"):
        restore(one)
    for read in (
        lambda: trainer.load_params(one, make(0).params),
        lambda: trainer.restore(one, make(0)),
        lambda: read_part(one, {"params": make(0).params}),
    ):
        with pytest.raises(ForeignCheckpoint, match=told):
            read()
    assert restore(one, epoch=2).state.params["w"][0] == 2


def test_a_foreign_checkpoint_is_restored_on_request_and_never_pruned(runs, caplog):
    one, other = runs
    save(other, 4, seed=1)
    copy(other, 4, one)
    assert restore(one, foreign=True).state.params["w"][0] == 14
    save(one, 5, 6, 7, keep=1)
    assert "checkpoint 4 in" in caplog.text
    assert restore(one).epoch == 7
    with Checkpoints(one, read_only=True) as checkpoints:
        assert checkpoints.epochs() == [4, 7]
        assert checkpoints.manifest(7)["run"] == run_id.read_run_id(one / "checkpoints")


def test_whole_directories_may_be_copied_and_moved(runs, tmp_path):
    moved = runs[1].rename(tmp_path / "moved")
    assert restore(moved).state.params["w"][0] == 13
    assert trainer.load_params(moved, make(0).params)["w"][0] == 13


def test_a_lost_id_is_written_again_by_the_next_save(runs, tmp_path):
    before = run_id.read_run_id(runs[0] / "checkpoints")
    (runs[0] / "run_id").unlink()
    assert restore(runs[0]).epoch == 3
    save(runs[0], 4)
    assert run_id.read_run_id(runs[0] / "checkpoints") == before
    (runs[0] / "run_id").write_text("nonsense")
    save(runs[0], 5)
    assert run_id.read_run_id(runs[0] / "checkpoints") == before


def test_without_an_id_all_checkpoints_must_be_of_one_run(runs):
    one, other = runs
    copy(other, 3, one)
    (one / "run_id").unlink()
    with pytest.raises(
        ForeignCheckpoint, match=r"of several runs \(1 of \w+, 2 of \w+, 3 of \w+\)"
    ):
        restore(one)


def test_a_checkpoint_without_an_id_is_restored(runs):
    file = runs[0] / "checkpoints/3/manifest.json"
    content = manifest.decode_manifest(file.read_bytes())
    file.write_bytes(manifest.encode_manifest({k: v for k, v in content.items() if k != "run"}))
    assert restore(runs[0]).epoch == 3


def test_exchanged_checkpoints_of_one_run_are_not_restored(runs, caplog):
    folder = runs[0] / "checkpoints"
    (folder / "3").rename(folder / "x")
    (folder / "2").rename(folder / "3")
    (folder / "x").rename(folder / "2")
    with pytest.raises(DamagedCheckpoint, match="it says that it is checkpoint 2"):
        restore(runs[0], strict=True)
    assert restore(runs[0]).epoch == 1
    assert caplog.text.count("it says that it is checkpoint") == 2


def test_a_run_refuses_a_foreign_checkpoint_before_it_trains(state, phase, tmp_path, caplog):
    def fit(run, epochs, seed, **settings):
        saving = hooks.save_checkpoints(run, max_cost=None, **settings)
        begin = state.replace(rng=jax.random.key(seed))
        return trainer.fit(begin, phase, epochs=epochs, hooks=saving)

    fit(tmp_path / "a", 2, 0)
    fit(tmp_path / "b", 3, 1)
    copy(tmp_path / "b", 3, tmp_path / "a")
    with pytest.raises(ForeignCheckpoint, match="checkpoint 3 in"):
        fit(tmp_path / "a", 4, 0)
    caplog.set_level(logging.INFO, "entracte")
    _, history = fit(tmp_path / "a", 4, 0, foreign=True)
    assert len(history) == 1
    assert "the root key: saved" in caplog.text
    assert len(fit(tmp_path / "a", 5, 0)[1]) == 1
