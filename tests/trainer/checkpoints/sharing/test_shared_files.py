"""Files that the checkpoints of a run share: what never changes is written once, and never lost."""

from __future__ import annotations

import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hooks
import trainer
from trainer import Checkpoints, TrainState, fingerprint
from trainer.checkpoints import DamagedCheckpoint, manifest
from trainer.runs.run_directory import describe_checkpoint

KEY = jax.random.key(0)
BASE = np.arange(2.0**15, dtype=np.float32)
"""128 KiB."""


def make(epoch, base=BASE):
    """A state of which 95% of the bytes never change."""
    params = {"w": np.full(1000, epoch, np.float32)}
    state = TrainState.create(params=params, model_state={"base": base}, rng=KEY)
    return state.replace(epoch=jnp.int32(epoch))


def save(run, *epochs, base=BASE, **options):
    """Restore, and save the states of these epochs, as a run does; return their folder."""
    with Checkpoints(run, **options) as checkpoints:
        checkpoints.restore(make(0))
        for epoch in epochs:
            checkpoints.save(make(epoch, base))
    return run / "checkpoints"


def assert_restored(run, epoch, base=BASE):
    """Assert that the newest intact checkpoint is that of this epoch, bit for bit."""
    with Checkpoints(run, read_only=True) as checkpoints:
        found = checkpoints.restore(make(0))
    assert found.epoch == epoch
    assert fingerprint(found.state) == fingerprint(make(epoch, base))


def count_written(checkpoint):
    """Count the bytes of a checkpoint that it does not share with an earlier one."""
    number = int(checkpoint.name)
    earlier = [path for path in checkpoint.parent.iterdir() if int(path.name) < number]
    known = {file.stat().st_ino for path in earlier for file in path.rglob("*")}
    files = [file.stat() for file in checkpoint.rglob("*") if file.is_file()]
    return sum(status.st_size for status in files if status.st_ino not in known)


def find_shared(checkpoint):
    """Return the one file of a checkpoint that others share."""
    (file,) = (x for x in (checkpoint / "arrays").iterdir() if x.name.count(".") == 2)
    return file


def flip(file, place):
    """Flip a bit of a file, in place."""
    with file.open("r+b") as opened:
        opened.seek(place)
        byte = opened.read(1)[0]
        opened.seek(place)
        opened.write(bytes([byte ^ 1]))


def test_every_checkpoint_after_the_first_is_small(tmp_path):
    folder = save(tmp_path, 1, 2, 3, keep=9)
    save(tmp_path, 4, 5, keep=9)  # a second process of the run
    first = count_written(folder / "1")
    assert first > BASE.nbytes
    assert all(count_written(folder / str(n)) < 0.06 * first for n in (2, 3, 4, 5))
    for epoch in (1, 3, 5):
        restored = trainer.restore(tmp_path, make(0), epoch=epoch)
        assert fingerprint(restored) == fingerprint(make(epoch))


def test_pruning_never_removes_what_is_referred_to(tmp_path):
    folder = save(tmp_path, *range(1, 8), keep=1)
    assert [path.name for path in folder.iterdir()] == ["7"]
    assert find_shared(folder / "7").name.startswith("process_0.1.")
    assert_restored(tmp_path, 7)
    save(tmp_path, 8, base=BASE + 1, keep=1)
    assert [path.name for path in (folder / "8/arrays").iterdir() if path.name[:2] == "pr"] == [
        "process_0"
    ]
    assert_restored(tmp_path, 8, BASE + 1)


def test_a_checkpoint_that_is_saved_again_refers_to_the_one_it_replaces(tmp_path):
    folder = save(tmp_path, 1, 1)
    assert find_shared(folder / "1").stat().st_nlink == 1
    assert_restored(tmp_path, 1)


def test_damage_is_found_in_every_checkpoint_that_refers_to_it(tmp_path, caplog):
    folder = save(tmp_path, 1, base=BASE + 1, keep=9)
    save(tmp_path, 2, 3, 4, keep=9)
    flip(find_shared(folder / "4"), BASE.nbytes // 2)
    for epoch in (2, 3, 4):
        with pytest.raises(DamagedCheckpoint, match="checksums differ at model_state/base"):
            trainer.restore(tmp_path, make(0), epoch=epoch)
    assert_restored(tmp_path, 1, BASE + 1)
    assert caplog.text.count("skipped a damaged checkpoint") == 3


def test_after_damage_a_run_refers_to_intact_bytes_alone(tmp_path):
    save(tmp_path / "run", 1, 2, 3)
    run = shutil.copytree(tmp_path / "run", tmp_path / "copy")  # each has bytes of its own
    damaged, intact = (find_shared(run / f"checkpoints/{number}") for number in (3, 2))
    flip(damaged, BASE.nbytes // 2)
    folder = save(run, 3)
    assert find_shared(folder / "3").samefile(intact)
    assert_restored(run, 3)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda file: file.unlink(), "is missing"),
        (lambda file: file.write_bytes(b"") and None, "has 0 bytes instead of"),
    ],
)
def test_a_shared_file_that_is_lost_or_cut_is_damage(tmp_path, damage, said):
    folder = save(tmp_path, 1, 2, 3)
    file = find_shared(folder / "3")
    damage(file)
    with pytest.raises(DamagedCheckpoint, match=f"{file.name} {said}"):
        trainer.restore(tmp_path, make(0), epoch=3)
    if said == "is missing":  # the others have names of their own for its bytes
        assert_restored(tmp_path, 2)


def test_a_run_that_lost_a_file_meanwhile_writes_it_again(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for epoch in (1, 2):
            checkpoints.save(make(epoch))
            checkpoints.wait()
        for number in (1, 2):
            shutil.rmtree(tmp_path / f"checkpoints/{number}")
        checkpoints.save(make(3))
    assert_restored(tmp_path, 3)


def test_without_hard_links_all_is_written(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    folder = save(tmp_path, 1, 2, 3, keep=9)
    assert all(count_written(folder / str(number)) > BASE.nbytes for number in (1, 2, 3))
    assert_restored(tmp_path, 3)


def test_a_run_that_was_copied_without_its_links_goes_on(tmp_path):
    save(tmp_path / "run", 1, 2, 3)
    copied = shutil.copytree(tmp_path / "run", tmp_path / "copy")
    shutil.rmtree(tmp_path / "run")
    assert_restored(copied, 3)
    folder = save(copied, 4)
    assert find_shared(folder / "4").stat().st_nlink == 2
    assert_restored(copied, 4)


def test_a_run_that_begins_from_another_is_whole_without_it(tmp_path):
    save(tmp_path / "old", 1, 2)
    state = trainer.restore(tmp_path / "old", make(0))
    with Checkpoints(tmp_path / "new") as checkpoints:
        checkpoints.save(state)
    shutil.rmtree(tmp_path / "old")
    assert_restored(tmp_path / "new", 2)


def test_a_failed_save_is_not_referred_to(tmp_path, monkeypatch):
    real = manifest.build_manifest

    def fail(epoch, *arguments, **options):
        if epoch == 2:
            raise OSError(5, "Input/output error")
        return real(epoch, *arguments, **options)

    monkeypatch.setattr(manifest, "build_manifest", fail)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make(1))
        checkpoints.save(make(2))
        with pytest.raises(OSError, match="Input/output"):
            checkpoints.wait()
        checkpoints.save(make(3))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1", "3"]
    assert_restored(tmp_path, 3)


def test_a_checkpoint_of_format_1_is_restored_and_the_next_one_is_whole(tmp_path):
    folder = save(tmp_path, 1)
    file = folder / "1/manifest.json"
    content = manifest.decode_manifest(file.read_bytes())
    assert content.pop("files") == {}
    del content["save"]
    file.write_bytes(manifest.encode_manifest(content | {"format": 1}))
    assert_restored(tmp_path, 1)
    save(tmp_path, 2)
    assert count_written(folder / "2") > BASE.nbytes
    assert_restored(tmp_path, 2)


def test_equal_states_have_equal_checksums_wherever_their_bytes_lie(tmp_path):
    save(tmp_path / "one", 1, 2, 3)
    save(tmp_path / "two", 3)
    one, two = (describe_checkpoint(tmp_path / name, 3) for name in ("one", "two"))
    assert one.checksum == two.checksum
    assert one.bytes == pytest.approx(two.bytes, rel=0.05)  # what is shared counts


def test_a_run_of_fit_writes_a_frozen_array_once(tmp_path):
    def run(state, _):
        params = {"w": state.params["w"] + 1}
        return state.replace(params=params, step=state.step + 1), None, {"loss": params["w"].mean()}

    phase, begin = trainer.Phase("train", run), make(0)
    for epochs in (2, 4):
        saving = hooks.save_checkpoints(tmp_path, keep=9, max_cost=None)
        state, _ = trainer.fit(begin, phase, epochs=epochs, hooks=saving)
    folder = tmp_path / "checkpoints"
    assert len({find_shared(folder / str(number)).stat().st_ino for number in (2, 3, 4)}) == 1
    assert fingerprint(trainer.restore(tmp_path, begin)) == fingerprint(state)
