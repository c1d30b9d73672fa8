"""Data in a bucket that several checkpoints refer to: it stays as long as one of them does."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import trainer
from trainer import Checkpoints, TrainState, fingerprint
from trainer.checkpoints.arrays import bucket_arrays
from trainer.checkpoints.storage import bucket_checkpoints
from trainer.checkpoints.storage.bucket_path import BucketError, BucketPath

BASE = np.arange(2.0**15, dtype=np.float32)


def make(epoch, base=BASE):
    """A state of which 95% of the bytes never change."""
    params = {"w": np.full(1000, epoch, np.float32)}
    state = TrainState.create(params=params, model_state={"base": base}, rng=jax.random.key(0))
    return state.replace(epoch=jnp.int32(epoch))


def save(bucket, *epochs, base=BASE, **options):
    """Restore, and save the states of these epochs, as a run does."""
    with Checkpoints(bucket, **options) as checkpoints:
        checkpoints.restore(make(0))
        for epoch in epochs:
            checkpoints.save(make(epoch, base))


def assert_restored(bucket, epoch, base=BASE):
    """Assert that the newest intact checkpoint is that of this epoch, bit for bit."""
    with Checkpoints(bucket, read_only=True) as checkpoints:
        found = checkpoints.restore(make(0))
    assert found.epoch == epoch
    assert fingerprint(found.state) == fingerprint(make(epoch, base))


def list_data(bucket):
    """List the epochs whose data is there."""
    return sorted(int(path.name.partition(".")[0]) for path in (bucket / "data").iterdir())


def count_bytes(bucket, epoch):
    """Count the bytes of the data of an epoch."""
    keys = [key for key in (bucket / "data").list_keys() if key.startswith(f"{epoch}.")]
    return sum(len((bucket / "data" / key).read_bytes()) for key in keys)


@pytest.mark.parametrize("chunk", [2**14 + 64, bucket_arrays.CHUNK])
def test_every_checkpoint_after_the_first_is_small_and_pruning_keeps_what_it_refers_to(
    bucket, monkeypatch, chunk
):
    monkeypatch.setattr(bucket_arrays, "CHUNK", chunk)
    save(bucket, 1, 2, 3, keep=2)
    save(bucket, 4, 5, keep=2)
    assert list_data(bucket) == [1, 4, 5]
    first = count_bytes(bucket, 1)
    assert first > BASE.nbytes
    assert all(count_bytes(bucket, epoch) < 0.06 * first for epoch in (4, 5))
    assert fingerprint(trainer.restore(str(bucket), make(0), epoch=4)) == fingerprint(make(4))
    assert_restored(bucket, 5)
    save(bucket, 6, 7, base=BASE + 1, keep=2)
    assert list_data(bucket) == [6, 7]
    assert_restored(bucket, 7, BASE + 1)


def test_less_than_half_of_a_file_is_written_once_more_and_then_shared(bucket):
    more = {"v": np.zeros(2**17, np.float32)}
    states = [make(n).replace(carry={"v": more["v"] + n}) for n in range(6)]
    with Checkpoints(bucket, keep=1) as checkpoints:
        for state in states[1:]:
            checkpoints.save(state)
    assert list_data(bucket) == [2, 5]
    assert count_bytes(bucket, 2) < BASE.nbytes + 64  # what changed in it is gone
    with Checkpoints(bucket, read_only=True) as checkpoints:
        found = checkpoints.restore(states[0])
    assert fingerprint(found.state) == fingerprint(states[5])


def test_one_that_is_saved_again_keeps_the_data_that_it_refers_to(bucket):
    save(bucket, 1, 1)
    assert list_data(bucket) == [1, 1]
    assert_restored(bucket, 1)
    save(bucket, 1, base=BASE + 1)
    assert list_data(bucket) == [1]
    assert_restored(bucket, 1, BASE + 1)


def test_damage_is_found_in_every_checkpoint_that_refers_to_it(bucket, caplog):
    save(bucket, 1, base=BASE + 1)
    save(bucket, 2, 3)
    (key,) = [key for key in bucket.list_keys() if key.startswith("data/2.")]
    content = bytearray((bucket / key).read_bytes())
    content[BASE.nbytes // 2] ^= 1
    (bucket / key).write_bytes(bytes(content))
    assert_restored(bucket, 1, BASE + 1)
    assert caplog.text.count("checksums differ at model_state/base") == 2
    (bucket / key).unlink()
    assert_restored(bucket, 1, BASE + 1)


def test_data_that_somebody_removed_is_written_again(bucket):
    with Checkpoints(bucket) as checkpoints:
        checkpoints.save(make(1))
        checkpoints.wait()
        (bucket / "data").remove_all()
        checkpoints.save(make(2))
    assert_restored(bucket, 2)


def test_what_a_killed_save_referred_to_stays_and_what_it_staged_goes(bucket, monkeypatch):
    save(bucket, 1, 2, 3, keep=1)
    with monkeypatch.context() as patch:  # as a kill: nothing is cleaned up
        patch.setattr(BucketPath, "replace", lambda *arguments: 1 / 0)
        patch.setattr(bucket_checkpoints, "remove_tree", lambda path, **options: None)
        with pytest.raises(ZeroDivisionError):
            save(bucket, 4, keep=1)
    assert list_data(bucket) == [1, 3, 4]
    assert_restored(bucket, 3)
    save(bucket, 4, keep=1)
    assert list_data(bucket) == [1, 4]
    assert_restored(bucket, 4)


@pytest.mark.parametrize("written", [True, False])
def test_a_checkpoint_that_may_be_there_keeps_its_data(bucket, monkeypatch, written):
    replace = BucketPath.replace

    def lose_answer(self, *arguments):
        if written:
            replace(self, *arguments)
        raise BucketError("no answer")

    with Checkpoints(bucket, keep=1) as checkpoints:
        for epoch in (1, 2):
            checkpoints.save(make(epoch))
            checkpoints.wait()
        with monkeypatch.context() as patch:
            patch.setattr(BucketPath, "replace", lose_answer)
            checkpoints.save(make(3))
            with pytest.raises(BucketError, match="no answer"):
                checkpoints.wait()
        assert_restored(bucket, 3 if written else 2)
        checkpoints.save(make(4, BASE + 1))
        checkpoints.wait()
        assert_restored(bucket, 4, BASE + 1)
