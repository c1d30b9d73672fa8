"""Checkpoints in a bucket: all or nothing, verified, and never mixed up."""

import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hooks
import trainer
from trainer import Checkpoints, TrainState
from trainer.checkpoints import DamagedCheckpoint, parts
from trainer.checkpoints.arrays import bucket_arrays
from trainer.checkpoints.storage import bucket_checkpoints, bucket_path, lease
from trainer.checkpoints.storage.bucket_path import BucketError
from trainer.checkpoints.storage.directory_lock import DirectoryInUse


def make(epoch):
    """A state whose values tell its epoch."""
    params = {"w": jnp.arange(300.0) + epoch, "b": jnp.bfloat16(epoch)}
    state = TrainState.create(params=params, rng=jax.random.key(epoch))
    return state.replace(epoch=jnp.int32(epoch))


def save(bucket, *epochs, **options):
    """Save the states of these epochs."""
    with Checkpoints(bucket, **options) as checkpoints:
        for epoch in epochs:
            checkpoints.save(make(epoch), scores={"val/loss": abs(epoch - 2)})


def assert_restored(bucket, epoch):
    """Assert that the newest intact checkpoint is that of this epoch, bit for bit."""
    with Checkpoints(bucket, read_only=True) as checkpoints:
        found = checkpoints.restore(make(0))
    assert found.epoch == epoch
    assert trainer.fingerprint(found.state) == trainer.fingerprint(make(epoch))


def list_data(bucket):
    """List the epochs whose data is there."""
    return sorted(int(path.name.partition(".")[0]) for path in (bucket / "data").iterdir())


def test_checkpoints_are_saved_ranked_pruned_and_restored(bucket):
    save(bucket, 1, 2, 3, 4, 5, keep=2, best="val/loss")
    with Checkpoints(str(bucket), best="val/loss") as checkpoints:
        assert (checkpoints.epochs(), checkpoints.best()) == ([2, 4, 5], 2)
        assert str(checkpoints.directory) == f"{bucket}/checkpoints"
    assert list_data(bucket) == [2, 4, 5]
    assert_restored(bucket, 5)
    best = trainer.restore(str(bucket), make(0), best="val/loss")
    assert trainer.fingerprint(best) == trainer.fingerprint(make(2))
    zeros = jax.tree.map(jnp.zeros_like, make(0).params)
    loaded = trainer.load_params(str(bucket), zeros)
    np.testing.assert_array_equal(loaded["w"], make(5).params["w"])


@pytest.mark.parametrize("chunk", [7, 64, 10_000])
def test_arrays_lie_in_several_objects(bucket, monkeypatch, chunk):
    monkeypatch.setattr(bucket_arrays, "CHUNK", chunk)
    save(bucket, 1)
    objects = [key for key in bucket.list_keys() if "process_0" in key]
    with Checkpoints(bucket, read_only=True) as checkpoints:
        pieces = checkpoints.manifest(1)["leaves"][""]
    assert len(objects) > 1200 // chunk
    assert any(leaf["path"] == "params/w" for leaf in pieces)
    assert_restored(bucket, 1)
    part = trainer.load_params(str(bucket), {"w": jnp.zeros(300)})
    np.testing.assert_array_equal(part["w"], make(1).params["w"])


def test_one_of_the_same_number_is_replaced_with_its_data(bucket):
    save(bucket, 1)
    first = [path.name for path in (bucket / "data").iterdir()]
    save(bucket, 1)
    second = [path.name for path in (bucket / "data").iterdir()]
    assert len(second) == 1
    assert first != second
    assert_restored(bucket, 1)


def damage(content):
    return content[:50] + bytes([content[50] ^ 1]) + content[51:]


@pytest.mark.parametrize("name", ["manifest.json", "000000"])
@pytest.mark.parametrize("change", [damage, lambda content: content[:-20], lambda content: None])
def test_damage_is_walked_past(bucket, name, change):
    save(bucket, 1, 2)
    for key in bucket.list_keys():
        if key.endswith(name) and ("/2/" in key or "/2." in key):
            content = change((bucket / key).read_bytes())
            (bucket / key).unlink() if content is None else (bucket / key).write_bytes(content)
    assert_restored(bucket, 1)


def test_a_bucket_that_does_not_answer_is_no_damage(bucket, monkeypatch):
    save(bucket, 1, 2)
    answer, refused = bucket_path.BucketPath.await_answer, []

    def refuse(self, request, seconds=60.0):
        if "process_0" in self.key:
            refused.append(self)
            raise BucketError("no network")
        return answer(self, request, seconds)

    monkeypatch.setattr(bucket_path.BucketPath, "await_answer", refuse)
    with (
        pytest.raises(BucketError, match="no network"),
        Checkpoints(bucket, read_only=True) as checkpoints,
    ):
        checkpoints.restore(make(0))
    assert ["/2." in str(path) for path in refused] == [True]


def test_what_a_killed_run_staged_is_removed_and_nothing_else(bucket):
    save(bucket, 1, 2)
    staged = bucket / "data" / "3.0123456789abcdef-1" / "arrays" / "process_0" / "000000"
    staged.write_bytes(b"half")
    with Checkpoints(bucket, read_only=True) as checkpoints:
        assert checkpoints.epochs() == [1, 2]
    assert staged.exists()
    with Checkpoints(bucket) as checkpoints:
        assert checkpoints.epochs() == [1, 2]
    assert staged.exists()  # another process may be saving
    save(bucket, 4)
    assert list_data(bucket) == [1, 2, 4]
    assert_restored(bucket, 4)


def test_what_others_keep_below_the_path_of_a_run_stays(bucket):
    others = [
        *("data/images/0.png", "data/12", "data/3.x-1/a", "checkpoints/7", "checkpoints/8/"),
        *("checkpoints/012/manifest.json", "checkpoints/abc", "checkpoints/9/notes.txt"),
    ]
    for key in others:
        (bucket / key).write_bytes(b"not ours")
    save(bucket, 1, 2, 3, 4, keep=2)
    with Checkpoints(bucket) as checkpoints:
        assert checkpoints.epochs() == [3, 4]
    assert_restored(bucket, 4)
    assert {*others} < {*bucket.list_keys()}


def test_a_reader_of_a_folder_without_manifests_finds_no_checkpoint(bucket):
    (bucket / "checkpoints" / "8/").write_bytes(b"")
    with Checkpoints(bucket, read_only=True) as checkpoints:
        assert checkpoints.restore(make(0)) is None


def test_one_that_is_opened_while_another_saves_takes_nothing_away(bucket, monkeypatch):
    write = parts.Snapshot.write

    def open_meanwhile(*arguments):
        written = write(*arguments)
        with Checkpoints(bucket) as other:
            assert other.restore(make(0)) is None
        return written

    monkeypatch.setattr(parts.Snapshot, "write", open_meanwhile)
    save(bucket, 1)
    assert_restored(bucket, 1)


def test_data_of_a_manifest_that_cannot_be_read_stays(bucket):
    save(bucket, 1, 2)
    file = bucket / "checkpoints" / "2" / "manifest.json"
    content = file.read_bytes()
    file.write_bytes(damage(content))
    save(bucket, 3)
    assert list_data(bucket) == [1, 2, 3]
    file.write_bytes(content)
    (bucket / "checkpoints" / "3" / "manifest.json").unlink()
    assert_restored(bucket, 2)


def test_a_copied_manifest_does_not_take_the_data_of_the_other_along(bucket):
    save(bucket, 1)
    copied = (bucket / "checkpoints" / "1" / "manifest.json").read_bytes()
    (bucket / "checkpoints" / "2" / "manifest.json").write_bytes(copied)
    save(bucket, 2)
    (bucket / "checkpoints" / "2" / "manifest.json").unlink()
    assert_restored(bucket, 1)


def test_one_whose_old_data_cannot_be_removed_is_saved(bucket, monkeypatch, caplog):
    save(bucket, 1)

    def refuse(path, **options):
        raise BucketError("no network")

    with monkeypatch.context() as patch:
        patch.setattr(bucket_path.BucketPath, "remove_all", refuse)
        save(bucket, 1)
    assert "takes space until the next run: no network" in caplog.text
    assert_restored(bucket, 1)
    assert list_data(bucket) == [1, 1]
    save(bucket, 2)
    assert list_data(bucket) == [1, 2]


@pytest.mark.parametrize("written", [True, False])
def test_data_stays_if_nobody_knows_whether_the_manifest_was_written(bucket, monkeypatch, written):
    save(bucket, 1)
    replace = bucket_path.BucketPath.replace

    def lose_answer(self, *arguments):
        if written:
            replace(self, *arguments)
        raise BucketError("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(bucket_path.BucketPath, "replace", lose_answer)
        with pytest.raises(BucketError, match="no answer"):
            save(bucket, 2)
    assert_restored(bucket, 2 if written else 1)
    assert list_data(bucket) == [1, 2]


def test_one_that_another_process_wrote_meanwhile_is_not_replaced(bucket, monkeypatch):
    check = bucket_checkpoints.check_lease

    def be_stopped(run):
        monkeypatch.setattr(bucket_checkpoints, "check_lease", check)
        save(run, 2)
        check(run)

    monkeypatch.setattr(bucket_checkpoints, "check_lease", be_stopped)
    with pytest.raises(DirectoryInUse, match="another process wrote checkpoint 2"):
        save(bucket, 2)
    assert_restored(bucket, 2)
    assert list_data(bucket) == [2]


def test_a_failed_save_leaves_nothing(bucket, monkeypatch):
    save(bucket, 1)
    with monkeypatch.context() as patch:
        patch.setattr("trainer.checkpoints.manifest_schema.MOST_BYTES", 10)
        with pytest.raises(ValueError, match="manifest of 2 takes"):
            save(bucket, 2)
    assert_restored(bucket, 1)
    assert list_data(bucket) == [1]


def test_a_run_that_lost_its_lease_publishes_nothing(bucket, monkeypatch):
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.1)
    held = lease.take_lease(bucket)
    save(bucket, 1)
    (bucket / "lock").write_bytes(b"{}")
    time.sleep(0.5)
    with pytest.raises(DirectoryInUse, match="was lost while the run had it"):
        save(bucket, 2)
    assert_restored(bucket, 1)
    assert list_data(bucket) == [1]
    held()


def test_a_run_saves_and_resumes_there(bucket, state, monkeypatch):
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.1)

    def train(epochs, run):
        hook = hooks.save_checkpoints(run, max_cost=None)
        program = trainer.Phase("train", halve)
        return trainer.fit(state, program, epochs=epochs, hooks=[hook])[0]

    train(2, str(bucket))
    ended = train(4, str(bucket))
    assert int(ended.step) == 4
    assert not (bucket / "lock").exists()
    with Checkpoints(bucket, read_only=True) as checkpoints:
        assert checkpoints.epochs() == [2, 3, 4]


def halve(state, data):
    return state.replace(step=state.step + 1), None, {"loss": jnp.float32(1)}


def test_one_that_was_copied_from_a_disk_is_refused_with_the_reason(bucket, tmp_path):
    save(tmp_path, 1)
    for file in (tmp_path / "checkpoints").rglob("*"):
        if file.is_file():
            (bucket / str(file.relative_to(tmp_path))).write_bytes(file.read_bytes())
    reason = "written to a disk and copied to a bucket"
    with pytest.raises(DamagedCheckpoint, match=reason), Checkpoints(bucket) as checkpoints:
        checkpoints.restore(make(0))
    save(bucket / "other", 1)
    for key in (bucket / "other").list_keys():
        file = tmp_path / "other" / key
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes((bucket / "other" / key).read_bytes())
    reason = "written to a bucket and copied to a disk"
    with pytest.raises(DamagedCheckpoint, match=reason):
        trainer.restore(tmp_path / "other", make(0))


def test_a_run_is_followed_and_resumed(bucket):
    follow = hooks.follow_checkpoints(str(bucket), timeout=5)
    save(bucket, 3)
    state = follow(follow(make(0), {}, event="start"), {})
    np.testing.assert_array_equal(state.params["w"], make(3).params["w"])
    assert state.scores == {"follow/epoch": 3.0}


def test_a_bucket_that_cannot_be_written_is_an_error_at_once(bucket):
    with pytest.raises(BucketError, match=re.escape("s3://nowhere/")):
        Checkpoints("s3://nowhere/run")
