"""Checkpoints: what comes back, what is refused, what survives damage, kills and retention."""

import json
import logging
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.checkpoints import Checkpoints, publishing
from trainer.checkpoints.arrays import array_storage
from trainer.checkpoints.arrays.damage import DamagedCheckpoint
from trainer.checkpoints.arrays.orbax_index import INDEX_FILES
from trainer.checkpoints.storage import disk_checkpoints
from trainer.state import TrainState, fingerprint


def make(epoch=1, size=5, **memory):
    """A state that tells its epoch apart from any other's."""
    params = {"w": jnp.arange(size, dtype=jnp.float32) + epoch, "b": jnp.full((), epoch, jnp.int8)}
    state = TrainState.create(
        params=params, opt_state=optax.adam(1e-3).init(params), rng=jax.random.key(epoch)
    )
    return state.replace(epoch=jnp.int32(epoch), step=jnp.int32(10 * epoch), hook_state=memory)


def save(directory, *epochs, **options):
    with Checkpoints(directory, **options) as checkpoints:
        for epoch in epochs:
            checkpoints.save(make(epoch))


def restore(directory, target=None, **options):
    with Checkpoints(directory) as checkpoints:
        return checkpoints.restore(make(0) if target is None else target, **options)


def folder(directory, epoch):
    return Path(directory) / "checkpoints" / str(epoch)


def assert_identical(got, wanted):
    """Equal in structure, types and every bit, None and empty containers included."""
    a, b = (jax.tree.flatten(tree, is_leaf=lambda x: x is None) for tree in (got, wanted))
    assert a[1] == b[1]
    for left, right in zip(a[0], b[0], strict=True):
        assert type(left) is type(right)
        if isinstance(left, jax.Array) and jnp.issubdtype(left.dtype, jax.dtypes.prng_key):
            left, right = jax.random.key_data(left), jax.random.key_data(right)
        if isinstance(left, jax.Array | np.ndarray | np.generic):
            assert (left.dtype, left.shape) == (right.dtype, right.shape)
            assert np.asarray(left).tobytes() == np.asarray(right).tobytes()
        else:
            assert repr(left) == repr(right)


# What comes back


def test_restoring_without_a_checkpoint_returns_none(tmp_path):
    assert restore(tmp_path) is None


def test_a_state_is_restored_with_its_scores(tmp_path):
    state = make(4, ema={"w": jnp.ones(3)}).replace(stop=True, scores={"val/loss": 1.0})
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, scores={"val/loss": 0.5}, config={"a": 1})
        checkpoint = checkpoints.restore(make(0, ema={"w": jnp.zeros(3)}))
    assert checkpoint.epoch == 4
    assert_identical(checkpoint.state, state.replace(scores={}))
    assert checkpoint.scores == {"val/loss": 0.5}
    assert checkpoint.manifest["hooks"] == ["ema"]
    assert checkpoint.manifest["config"] == {"a": 1}


class Patience(NamedTuple):
    best: Any
    since: Any


ARRAYS = {
    "bfloat16": jnp.array([1.5, -0.0, jnp.inf, jnp.nan], jnp.bfloat16),
    "float8": jnp.array([0.5, 2], jnp.float8_e4m3fn),
    "int4": jnp.array([-8, 7], jnp.int4),
    "int8": jnp.array([-128, 127], jnp.int8),
    "bool": jnp.array([[True], [False]]),
    "uint32": jnp.array([2**32 - 1], jnp.uint32),
    "scalar": jnp.float16(3),
    "empty": jnp.zeros((0, 3)),
    "key": jax.random.key(7),
    "keys": jax.random.split(jax.random.key(1, impl="rbg"), (2, 3)),
    "no keys": jax.random.split(jax.random.key(1), 0),
    "numpy": np.array([2**63 - 1, -1]),
    "numpy scalar": np.array(1.0),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big endian": np.arange(3, dtype=">i4"),
    "strided": np.arange(10)[::3],
    "text": np.array(["a", "bcd"]),
    "nothing": None,
    "containers": {"a": {}, "b": (), "c": [], "d": {"e": []}},
    "record": Patience(math.inf, np.int64(3)),
}


def test_every_kind_of_array_is_restored_bit_for_bit(tmp_path):
    state = make(1).replace(carry=ARRAYS)
    blank = jax.tree.map(
        lambda x: np.zeros_like(x) if isinstance(x, np.ndarray) else x, state.carry
    )
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
        again = checkpoints.restore(state.replace(carry=blank)).state
    assert_identical(again, state)
    assert again.carry["numpy"].flags.owndata


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=4),
    st.builds(np.float32, st.floats(width=32)),
    st.builds(np.float64, st.floats()),
    st.builds(np.int8, st.integers(-128, 127)),
    st.builds(np.uint64, st.integers(0, 2**64 - 1)),
    st.builds(np.bool_, st.booleans()),
    st.builds(jnp.bfloat16, st.floats(width=16)),
    st.builds(np.asarray, st.lists(st.floats(width=16), max_size=3)),
    st.builds(Patience, st.floats(), st.integers()),
)
names = st.text("ab/ _.é0", min_size=1, max_size=4)
memories = st.dictionaries(
    names,
    st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner),
        max_leaves=4,
    ),
    max_size=3,
)


@given(memories)
@settings(max_examples=25)
def test_any_hook_state_is_restored_bit_for_bit(tmp_path_factory, memory):
    state = make(1).replace(hook_state=memory)
    with Checkpoints(tmp_path_factory.mktemp("run")) as checkpoints:
        try:
            checkpoints.save(state)
        except ValueError:  # two leaves share a path: refused
            return
        assert_identical(checkpoints.restore(state).state, state)


# Saving in the background


@pytest.mark.parametrize("size", [1000, 2**21])
def test_saving_keeps_no_view_that_would_prevent_donation(tmp_path, size):
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x * 2, tree), donate_argnums=0)
    state = make(1, size=size)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
        addresses = {x.unsafe_buffer_pointer() for x in jax.tree.leaves(state.params)}
        params = step(state.params)
        assert {x.unsafe_buffer_pointer() for x in jax.tree.leaves(params)} == addresses
        saved = checkpoints.restore(make(0, size=size)).state
    assert_identical(saved, make(1, size=size))


def test_the_copy_reuses_its_buffer(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make(1, size=1000))
        buffer = checkpoints._buffer
        checkpoints.save(make(2, size=1000))
        checkpoints.save(make(3, size=10))
        assert checkpoints._buffer is buffer
        assert_identical(checkpoints.restore(make(0, size=10)).state, make(3, size=10))
        assert_identical(checkpoints.restore(make(0, size=1000), epoch=2).state, make(2, size=1000))


def test_the_time_that_saving_takes_is_counted(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.seconds, checkpoints.last_seconds) == (0, 0)
        checkpoints.save(make(1))
        checkpoints.wait()
        first = checkpoints.seconds
        assert 0 < first < 10
        assert checkpoints.last_seconds == first
        checkpoints.save(make(2))
        checkpoints.wait()
        assert checkpoints.seconds == pytest.approx(first + checkpoints.last_seconds)


# Failures


def fail_at(monkeypatch, error, name="publish", times=1):
    """Make a step of saving fail."""
    whole, left = getattr(publishing, name), [times]

    def failing(*arguments):
        if left[0]:
            left[0] -= 1
            raise error
        return whole(*arguments)

    monkeypatch.setattr(publishing, name, failing)


@pytest.mark.parametrize("asking", ["save", "check_for_errors", "wait", "close"])
def test_a_failed_save_is_raised_once_with_where_and_when(tmp_path, monkeypatch, asking):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(make(1))
    checkpoints.wait()
    fail_at(monkeypatch, OSError(28, "No space left on device"))
    checkpoints.save(make(2))
    checkpoints._worker.join()
    ask = (lambda: checkpoints.save(make(3))) if asking == "save" else getattr(checkpoints, asking)
    with pytest.raises(OSError, match="No space left") as failure:
        ask()
    assert failure.value.__notes__ == [f"while saving epoch 2 to {tmp_path / 'checkpoints'}"]
    checkpoints.check_for_errors()
    checkpoints.save(make(3))
    checkpoints.close()
    assert checkpoints.epochs() == [1, 3]
    assert_identical(checkpoints.restore(make(0)).state, make(3))


def test_leaving_the_context_raises_a_failed_save(tmp_path, monkeypatch):
    fail_at(monkeypatch, MemoryError("no memory"))
    with pytest.raises(MemoryError), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make(1))


def test_a_save_that_never_ends_is_raised_and_leaves_nothing(tmp_path, monkeypatch):
    gate, write = threading.Event(), array_storage.save_arrays

    def hang(*arguments):
        gate.wait(30)
        write(*arguments)

    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(make(1))
    checkpoints.wait()
    monkeypatch.setattr(array_storage, "save_arrays", hang)
    monkeypatch.setattr(checkpoints._worker, "_limit", 0.05)
    checkpoints.save(make(2))
    thread = checkpoints._worker._task.thread
    with pytest.raises(
        TimeoutError, match=r"limit of 0.05 seconds: the disk .* time_limit"
    ) as late:
        checkpoints.wait()
    assert late.value.__notes__ == [f"while saving epoch 2 to {tmp_path / 'checkpoints'}"]
    gate.set()
    thread.join(10)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1"]
    monkeypatch.setattr(checkpoints._worker, "_limit", None)
    checkpoints.save(make(3))
    checkpoints.close()
    assert checkpoints.epochs() == [1, 3]


@pytest.mark.parametrize("limit", [0, -1.0])
def test_a_time_limit_must_be_positive(tmp_path, limit):
    with pytest.raises(ValueError, match="time_limit must be positive seconds, or None"):
        Checkpoints(tmp_path, time_limit=limit)


def test_a_failed_save_frees_its_disk_space(tmp_path, monkeypatch):
    fail_at(monkeypatch, OSError(28, "No space left on device"))
    with pytest.raises(OSError, match="No space"), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make(1))
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_what_cannot_be_saved_is_refused_at_once_by_path(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(TypeError, match="hook_state/mine/0 is builtins.builtin_function"):
            checkpoints.save(make(1, mine=[print]))
        with pytest.raises(TypeError):
            checkpoints.save(make(1), config={"loss": print})
        assert checkpoints.epochs() == []


def test_a_deleted_array_is_named(tmp_path):
    state = make(1)
    state.params["w"].delete()
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(RuntimeError, match="params/w was deleted"):
        checkpoints.save(state)


def test_a_directory_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write checkpoints to .*read_only=True"):
        Checkpoints(tmp_path / "file" / "run")
    assert Checkpoints(tmp_path / "file" / "run", read_only=True).latest() is None


def test_a_directory_without_permission_is_refused_at_once(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(disk_checkpoints.tempfile, "TemporaryFile", refuse)
    with pytest.raises(PermissionError, match=r"cannot write checkpoints to .* \(Permission"):
        Checkpoints(tmp_path)


@pytest.mark.parametrize("wrong", [{"mode": "best"}, {"keep": 0}, {"keep_best": 0}, {"every": 0}])
def test_settings_out_of_range_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Checkpoints(tmp_path, **wrong)


# What does not fit


def test_all_differences_are_listed_and_no_older_checkpoint_is_taken(tmp_path):
    save(tmp_path, 1)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make(2, size=7, patience={"best": 0.5, "since": 0, "old": 1}))
    target = make(0, size=5, patience={"best": 1, "since": 0, "new": 1.0})
    target = target.replace(params={**target.params, "b": jnp.zeros(()), "extra": jnp.zeros(2)})
    with pytest.raises(ValueError, match="checkpoint 2 in .* does not fit") as error:
        restore(tmp_path, target)
    lines = [line.strip() for line in str(error.value).splitlines()[1:-1]]
    assert set(lines) == {
        "params/w: saved float32[7], wanted float32[5]",
        "params/b: saved int8[], wanted float32[]",
        "params/extra: saved nothing, wanted float32[2]",
        "opt_state/0/mu/w: saved float32[7], wanted float32[5]",
        "opt_state/0/nu/w: saved float32[7], wanted float32[5]",
        "hook_state/patience/best: saved float, wanted int",
        "hook_state/patience/old: saved int, wanted nothing",
        "hook_state/patience/new: saved nothing, wanted float",
    }


PAIRS = [(1, 1.0), (1.5, np.float64(1.5)), (np.float32(1), np.float64(1)), (None, 1.0), (1, True)]
PAIRS += [("1", 1), (np.ones(()), 1.0), (np.bool_(1), True), (jnp.ones(2), jnp.ones(2, jnp.int8))]


@pytest.mark.parametrize(("saved", "wanted"), [*PAIRS, *((b, a) for a, b in PAIRS)])
def test_a_type_never_changes_in_a_restore(tmp_path, saved, wanted):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make(1, mine=saved))
        with pytest.raises(ValueError, match="hook_state/mine: saved .*, wanted "):
            checkpoints.restore(make(0, mine=wanted))


def test_states_of_other_hooks_are_left_out_or_dropped_with_a_notice(tmp_path, caplog):
    caplog.set_level(logging.INFO, "entracte")
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make(1, stays=1, old={"x": jnp.ones(3)}, nothing={}))
        memory = checkpoints.restore(make(0, stays=0, new={"y": 2}, nothing={})).state.hook_state
    assert memory == {"stays": 1, "nothing": {}}
    assert "hook_state/new starts fresh" in caplog.text
    assert "hook_state/old is dropped" in caplog.text
    assert "nothing" not in caplog.text


def test_another_configuration_is_refused_by_key(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make(1), config={"rate": 0.1, "epochs": 3, "widths": (1, 2), "run": "a"})
        checkpoints.save(make(2))
        fits = {"widths": [1, 2], "rate": 0.1, "epochs": 9, "run": "b"}
        assert checkpoints.restore(make(0), epoch=1, config=fits).epoch == 1
        assert checkpoints.restore(make(0), epoch=1).epoch == 1
        assert checkpoints.restore(make(0), epoch=2, config={"rate": 3}).epoch == 2
        with pytest.raises(ValueError, match=r"rate: saved 0.1, now 0.2"):
            checkpoints.restore(make(0), epoch=1, config={**fits, "rate": 0.2})


# Damage


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def zero(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 4 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 4)
    path.write_bytes(content)


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    path.write_bytes(b"")


def scramble(path):
    path.write_bytes(os.urandom(path.stat().st_size))


FILES = ["manifest.json", "arrays/process_0"]


def test_the_files_of_a_checkpoint_are_these(tmp_path):
    save(tmp_path, 1)
    found = {p.relative_to(folder(tmp_path, 1)).as_posix() for p in folder(tmp_path, 1).rglob("*")}
    assert found - {"arrays"} == {*FILES, *(f"arrays/{name}" for name in INDEX_FILES)}


@pytest.mark.parametrize("damage", [flip, empty, Path.unlink])
@pytest.mark.parametrize("file", INDEX_FILES)
def test_damage_to_the_index_for_orbax_is_none_for_this_library(tmp_path, file, damage):
    save(tmp_path, 1)
    damage(folder(tmp_path, 1) / "arrays" / file)
    assert_identical(restore(tmp_path, strict=True).state, make(1))


@pytest.mark.parametrize("damage", [flip, zero, truncate, empty, scramble, Path.unlink])
@pytest.mark.parametrize("file", FILES)
def test_damage_is_noticed(tmp_path, caplog, file, damage):
    save(tmp_path, 1, 2)
    damage(folder(tmp_path, 2) / file)
    checkpoint = restore(tmp_path)
    assert "skipped a damaged checkpoint: checkpoint 2 in " in caplog.text
    with pytest.raises(DamagedCheckpoint, match="checkpoint 2 in "):
        restore(tmp_path, strict=True)
    with pytest.raises(DamagedCheckpoint, match="checkpoint 2 in "):
        restore(tmp_path, epoch=2)
    assert_identical(checkpoint.state, make(1))


def test_a_bit_flipped_anywhere_in_the_arrays_is_noticed(tmp_path):
    save(tmp_path, 1)
    file = folder(tmp_path, 1) / "arrays/process_0"
    content = file.read_bytes()
    with Checkpoints(tmp_path) as checkpoints:
        for position in range(0, len(content), 13):
            flipped = bytearray(content)
            flipped[position] ^= 1 << position % 8
            file.write_bytes(flipped)
            with pytest.raises(DamagedCheckpoint, match="checksums differ at"):
                checkpoints.restore(make(0))
        file.write_bytes(content)
        assert_identical(checkpoints.restore(make(0)).state, make(1))


def empty_folder(path):
    shutil.rmtree(path)
    path.mkdir()


def without_arrays(path):
    shutil.rmtree(path / "arrays")


def another_s(path):
    shutil.rmtree(path)
    shutil.copytree(path.with_name("1"), path)


@pytest.mark.parametrize("damage", [empty_folder, without_arrays, another_s])
def test_a_broken_folder_is_skipped(tmp_path, caplog, damage):
    save(tmp_path, 1, 2)
    damage(folder(tmp_path, 2))
    assert restore(tmp_path).epoch == 1
    assert "checkpoint 2 in " in caplog.text


def test_a_damaged_array_is_named(tmp_path):
    save(tmp_path, 1)
    with Checkpoints(tmp_path) as checkpoints:
        leaves = {leaf["path"]: leaf for leaf in checkpoints.manifest(1)["leaves"][""]}
        file = folder(tmp_path, 1) / "arrays/process_0"
        content = bytearray(file.read_bytes())
        content[leaves["opt_state/0/nu/w"]["pieces"][0]["offset"]] ^= 1
        file.write_bytes(content)
        with pytest.raises(DamagedCheckpoint, match="checksums differ at opt_state/0/nu/w$"):
            checkpoints.restore(make(0))


def test_if_no_checkpoint_is_intact_the_error_says_why_for_each(tmp_path):
    save(tmp_path, 1, 2)
    for epoch in (1, 2):
        empty(folder(tmp_path, epoch) / "manifest.json")
    with pytest.raises(DamagedCheckpoint, match="(?s)no checkpoint is intact:.*point 2 .*point 1 "):
        restore(tmp_path)


def test_a_missing_checkpoint_is_no_damage(tmp_path):
    save(tmp_path, 1, 2)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of epoch 7 in .*: \[1, 2\]"):
        restore(tmp_path, epoch=7)


def test_a_newer_format_is_no_damage(tmp_path, monkeypatch):
    save(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr("trainer.checkpoints.manifest.FORMAT", 3)
        save(tmp_path, 2)
    with pytest.raises(ValueError, match="checkpoint 2 in .* is of format 3, and .* up to 2"):
        restore(tmp_path)


def test_training_from_before_a_damaged_checkpoint_replaces_it(tmp_path):
    save(tmp_path, 1, 2, 3, 4, keep=4)
    flip(folder(tmp_path, 3) / "arrays/process_0")
    empty(folder(tmp_path, 4) / "manifest.json")
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        assert checkpoints.restore(make(0)).epoch == 2
        assert checkpoints.epochs() == [1, 2]
        assert checkpoints.latest() == 2
        checkpoints.save(make(3))
        assert checkpoints.epochs() == [3]
        assert folder(tmp_path, 4).exists()
        checkpoints.save(make(4))
        assert checkpoints.epochs() == [4]
    assert_identical(restore(tmp_path).state, make(4))


def test_a_checkpoint_is_replaced_by_one_of_its_number(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make(1), scores={"loss": 1.0})
        other = make(1).replace(stop=True)
        checkpoints.save(other, scores={"loss": 2.0})
        checkpoint = checkpoints.restore(make(0))
    assert_identical(checkpoint.state, other)
    assert checkpoint.scores == {"loss": 2.0}
    assert sorted(p.name for p in folder(tmp_path, 1).parent.iterdir()) == ["1"]


def test_going_back_on_purpose_warns_of_what_will_be_restored(tmp_path, caplog):
    save(tmp_path, 1, 2, 3)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.restore(make(0), epoch=1)
        checkpoints.save(make(2))
    assert "epoch 2 was saved" in caplog.text
    assert "[3] come before it when restoring" in caplog.text


# Kills


class Killed(BaseException):
    pass


def killed_after(steps, step):
    """A step that raises once as many as given have been done."""

    def call(*arguments, **options):
        if next(steps, None) is None:
            raise Killed
        return step(*arguments, **options)

    return call


def test_a_kill_between_any_two_steps_leaves_the_old_checkpoint_or_the_new(tmp_path, monkeypatch):
    """Nothing is undone when a step raises, so that raising leaves what a kill would."""
    outcomes = []
    for instant in range(30):
        run = tmp_path / str(instant)
        save(run, 1, 2, keep=2)
        steps = iter(range(instant))
        with monkeypatch.context() as patch:
            for owner, name in [
                (array_storage, "save_arrays"),
                (os, "fsync"),
                (Path, "rename"),
                (shutil, "rmtree"),
            ]:
                patch.setattr(owner, name, killed_after(steps, getattr(owner, name)))
            checkpoints = Checkpoints(run, keep=1)
            checkpoints.save(make(2).replace(stop=True))
            checkpoints._worker.join()
        checkpoint = restore(run)
        assert_identical(checkpoint.state, make(2).replace(stop=checkpoint.state.stop))
        outcomes.append(checkpoint.state.stop)
        save(run, 3, keep=1)
        assert [p.name for p in (run / "checkpoints").iterdir()] == ["3"]
        try:
            checkpoints.close()
        except Killed:
            continue
        break
    # Arrays, three files of an index, manifest, folders, the old one aside; then the new one.
    assert outcomes[:10] == [False] * 10
    assert outcomes[10:] == [True] * 5


def script(body, *arguments, devices=1, **options):
    """Run a script in a process of its own, without a GPU and with as many devices."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "error"}
    environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    head = """
        import os, sys, time
        import jax, jax.numpy as jnp, numpy as np
        from trainer.checkpoints import Checkpoints
        from trainer.state import TrainState
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(body), *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_after_a_kill_while_saving_the_run_resumes_from_the_last_checkpoint(tmp_path):
    body = """
        params = {"w": jnp.ones(2**20)}
        checkpoints = Checkpoints(sys.argv[1], keep=2)
        for epoch in range(1, 10**6):
            state = TrainState.create(params=params, rng=jax.random.key(0))
            checkpoints.save(state.replace(epoch=jnp.int32(epoch)), scores={"loss": 1.0})
            print(epoch, flush=True)
    """
    process = script(body, tmp_path)
    while int(process.stdout.readline()) < 4:
        pass
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    target = TrainState.create(params={"w": jnp.zeros(2**20)}, rng=jax.random.key(1))
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoint = checkpoints.restore(target, strict=True)
        assert checkpoint.epoch == int(checkpoint.state.epoch) >= 3
        assert bool(jnp.all(checkpoint.state.params["w"] == 1))
        checkpoints.save(checkpoint.state.replace(epoch=checkpoint.state.epoch + 1))
    names = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert names == [str(checkpoint.epoch + 1)]


def test_a_process_that_just_ends_finishes_its_save_or_reports_that_it_could_not(tmp_path):
    """From Python 3.12 on no thread can be started then, as Orbax does."""
    body = """
        state = TrainState.create(params={"w": jnp.ones(2**22)}, rng=jax.random.key(0))
        checkpoints = Checkpoints(sys.argv[1])
        checkpoints.save(state)
    """
    process = script(body, tmp_path)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0
    if sys.version_info >= (3, 12) and said:
        assert "can't create new thread at interpreter shutdown\nwhile saving epoch 0" in said
        assert Checkpoints(tmp_path, read_only=True).epochs() == []
    else:
        assert said == ""
        assert Checkpoints(tmp_path, read_only=True).epochs() == [0]


# Devices


def test_to_four_devices_and_back(tmp_path):
    state = TrainState.create(params={"w": jnp.arange(64.0).reshape(16, 4)}, rng=jax.random.key(5))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state.replace(carry={"keys": jax.random.split(state.rng, 8)}))
    body = """
        from jax.sharding import NamedSharding, PartitionSpec as P
        mesh = jax.make_mesh((2, 2), ("a", "b"))
        put = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, P(*spec)))
        state = TrainState.create(
            params={"w": put(jnp.zeros((16, 4)), "a", "b")}, rng=put(jax.random.key(0))
        )
        state = state.replace(carry={"keys": put(jax.random.split(state.rng, 8), "a")})
        with Checkpoints(sys.argv[1]) as checkpoints:
            got = checkpoints.restore(state).state
            assert got.params["w"].sharding == state.params["w"].sharding
            assert got.carry["keys"].sharding == state.carry["keys"].sharding
            assert got.rng.sharding == state.rng.sharding
            assert bool((got.rng == jax.random.key(5)).all())
            rows = NamedSharding(mesh, P(("a", "b"), None))
            w = jax.jit(lambda w: w * 2, out_shardings=rows)(got.params["w"])
            places = [shard.data.unsafe_buffer_pointer() for shard in w.addressable_shards]
            checkpoints.save(got.replace(epoch=jnp.int32(1), params={"w": w}))
            w = jax.jit(lambda w: w + 1, donate_argnums=0)(w)
            assert [s.data.unsafe_buffer_pointer() for s in w.addressable_shards] == places
    """
    process = script(body, tmp_path, devices=4)
    said, errors = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")
    assert errors.count("\n") == 1
    assert f"devices: saved with {jax.device_count()} cpu, now 4 cpu" in errors
    with Checkpoints(tmp_path) as checkpoints:
        target = state.replace(carry={"keys": jax.random.split(jax.random.key(0), 8)})
        got = checkpoints.restore(target).state
    wanted = state.replace(params={"w": state.params["w"] * 2}, epoch=jnp.int32(1))
    assert_identical(got, wanted.replace(carry={"keys": jax.random.split(state.rng, 8)}))


def test_two_processes_save_once_and_restore_their_shares(tmp_path):
    body = """
        from jax.sharding import NamedSharding, PartitionSpec as P
        rank, address = int(sys.argv[2]), "127.0.0.1:" + sys.argv[3]
        jax.distributed.initialize(address, num_processes=2, process_id=rank)
        mesh = jax.make_mesh((2,), ("a",))
        def put(x, *spec):
            place = NamedSharding(mesh, P(*spec))
            return jax.make_array_from_callback(x.shape, place, lambda index: x[index])
        def state(factor):
            key = jax.jit(lambda: jax.random.key(factor), out_shardings=NamedSharding(mesh, P()))
            whole = np.arange(6.0, dtype=np.float32) * factor
            params = {"split": put(whole, "a"), "same": put(whole)}
            epoch = put(np.int32(factor))
            return TrainState.create(params=params, rng=key()).replace(epoch=epoch, hook_state={"h":
            1})
        checkpoints = Checkpoints(sys.argv[1])
        checkpoints.save(state(2))
        checkpoints.wait()
        jax.block_until_ready(jax.jit(lambda x: x.sum())(state(2).params["split"]))  # meet
        got = checkpoints.restore(state(0)).state
        share = np.asarray(got.params["split"].addressable_data(0))
        np.testing.assert_array_equal(share, np.arange(6.0)[3 * rank : 3 * rank + 3] * 2)
        same = np.asarray(got.params["same"].addressable_data(0))
        np.testing.assert_array_equal(same, np.arange(6.0) * 2)
        assert jax.random.key_data(got.rng).addressable_data(0).tolist() == [0, 2]
        checkpoints.close()

        # What goes wrong on one goes wrong on both, at once, and both can continue.
        def told(act):
            try:
                act()
            except Exception as error:
                return f"{type(error).__name__}: {error}"
        from trainer.checkpoints.arrays import array_storage
        from trainer.checkpoints.load import restore
        own = f"{sys.argv[1]}/{rank}"
        if rank == 0:
            os.makedirs(own + "/checkpoints")
            os.rename(sys.argv[1] + "/checkpoints/2", own + "/checkpoints/2")
        else:
            os.makedirs(own)
        lacking = ["process 1 finds it damaged, or does not find", "RuntimeError: reading"][rank]
        said = told(lambda: Checkpoints(own, read_only=True).restore(state(0)))
        assert lacking in said, said
        said = told(lambda: restore(own, state(0)))
        assert lacking in said, said
        if rank == 0:
            open(own + "/file", "w").close()
        said = told(lambda: Checkpoints(own + ("/file" if rank == 0 else "")))
        assert ["Error: ", "opening"][rank] in said, said
        def fail(*arguments):
            raise OSError(28, "the disk is full")
        whole = array_storage.save_arrays
        for failing in (0, 1):
            if rank == failing:
                array_storage.save_arrays = fail
            checkpoints.save(state(4))
            said = told(checkpoints.wait)
            here = "OSError: [Errno 28] the disk is full"
            there = f"process {failing} could not write its part: {here}"
            others = (there, "a save failed on process 0", "the main process gave up saving")
            wanted = (here,) if rank == failing else others
            assert any(text in said for text in wanted), said
            array_storage.save_arrays = whole
        assert checkpoints.epochs() == [], "all parts or none"
        checkpoints.save(state(5))
        checkpoints.wait()
        checkpoints.close()
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [script(body, tmp_path, rank, port) for rank in (0, 1)]
    try:
        errors = [process.communicate(timeout=60)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], errors
    assert Checkpoints(tmp_path, read_only=True).epochs() == [5]


# Which checkpoints are kept


def scored(directory, scores, **options):
    with Checkpoints(directory, best="loss", **options) as checkpoints:
        for epoch, score in scores.items():
            checkpoints.save(make(epoch), scores={} if score is None else {"loss": score})
    return checkpoints


def test_the_newest_are_kept(tmp_path):
    save(tmp_path, 1, 2, 3, 4, 5, keep=2)
    assert Checkpoints(tmp_path).epochs() == [4, 5]


@pytest.mark.parametrize(("mode", "best"), [("min", 2), ("max", 3)])
def test_the_best_is_kept_in_addition_across_reopening(tmp_path, mode, best):
    scored(tmp_path, {1: 0.5, 2: 0.1, 3: 0.9}, mode=mode, keep=1)
    again = scored(tmp_path, {4: 0.6, 5: None, 6: math.nan, 7: 0.5}, mode=mode, keep=1)
    assert again.epochs() == [best, 7]
    assert (again.best(), again.latest()) == (best, 7)


def test_several_best_and_every_nth_are_kept(tmp_path):
    scores = {1: 0.1, 2: 0.5, 3: 0.2, 4: 0.9, 5: 0.8, 6: 0.7}
    checkpoints = scored(tmp_path, scores, keep=1, keep_best=2, every=4)
    assert checkpoints.epochs() == [1, 3, 4, 6]


def test_without_any_score_there_is_no_best(tmp_path):
    assert scored(tmp_path, {1: None, 2: math.nan}).best() is None
    assert Checkpoints(tmp_path).best() is None


def test_a_reader_sees_checkpoints_appear_and_writes_nothing(tmp_path, caplog):
    reader = Checkpoints(tmp_path, best="loss", read_only=True)
    assert (reader.latest(), reader.best(), reader.restore(make(0))) == (None, None, None)
    assert list(tmp_path.iterdir()) == []
    scored(tmp_path, {1: 0.5, 2: 0.6})
    (tmp_path / "checkpoints" / "3.staged").mkdir()
    assert (reader.latest(), reader.best(), reader.restore(make(0)).epoch) == (2, 1, 2)
    with pytest.raises(RuntimeError, match="read_only"):
        reader.save(make(3))
    reader.close()
    assert (tmp_path / "checkpoints" / "3.staged").exists()
    assert caplog.text == ""


def test_files_of_others_are_left_alone(tmp_path):
    commits_folder = tmp_path / "checkpoints"
    (commits_folder / "notes").mkdir(parents=True)
    (commits_folder / "07").mkdir()
    (commits_folder / "8").write_text("no folder")
    save(tmp_path, 1, 2, keep=1)
    assert sorted(p.name for p in commits_folder.iterdir()) == ["07", "2", "8", "notes"]


def test_paths_in_a_manifest_open_no_file(tmp_path):
    outside = tmp_path / "outside"
    with Checkpoints(tmp_path / "run") as checkpoints:
        state = make(1, **{str(outside): {"../../x": jnp.ones(2)}})
        checkpoints.save(state)
        assert_identical(checkpoints.restore(state).state, state)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_closing_twice_does_nothing_and_saving_continues(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.close()
    checkpoints.close()
    checkpoints.save(make(1))
    checkpoints.close()
    assert json.loads((folder(tmp_path, 1) / "manifest.json").read_text())["manifest"]["epoch"] == 1
    assert fingerprint(restore(tmp_path).state) == fingerprint(make(1))
