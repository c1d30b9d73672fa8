"""Full disks, directories that turn read-only, and damaged checkpoints, in whole runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

import pytest

import hooks
import trainer
from trainer import Checkpoints, fingerprint

EPOCHS = 6
STAGE = r"3\.[0-9a-f]{16}-\d+\.staged"
"""The folder in which the third epoch is saved, as a regular expression."""

CHILD = """
import json, os, resource, signal, sys
from pathlib import Path
import jax, jax.numpy as jnp
import hooks, trainer

directory, fault = Path(sys.argv[1]), sys.argv[2]
ballast = directory / "ballast"

def step(state, data):
    noise = jax.random.normal(state.key("noise"), state.params["w"].shape)
    params = {"w": state.params["w"] * 0.99 + noise}
    return state.replace(step=state.step + 1, params=params), None, {"loss": jnp.abs(noise).mean()}

begin = trainer.TrainState.create(params={"w": jnp.zeros(2**18)}, rng=jax.random.key(0))
phase = trainer.Phase("train", step)

def fail():
    if fault == "file size":
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, resource.RLIM_INFINITY))
    elif fault == "full disk":
        with ballast.open("wb", 0) as file:
            while file.write(bytes(2**12)) == 2**12:
                pass
    else:
        (directory / "run/checkpoints").chmod(0o555)

def mend():
    if fault == "file size":
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    elif fault == "full disk":
        ballast.unlink()
    else:
        (directory / "run/checkpoints").chmod(0o755)

def failing(state, metrics):
    if int(state.epoch) == 3:
        # The saves before it may still be under way.
        while not (directory / "run/checkpoints/2/manifest.json").exists():
            pass
        try:
            fail()
        except OSError:
            pass
    return state

def fit(name, *others):
    chain = [*others, hooks.average_params(0.9)]
    chain += [hooks.save_checkpoints(directory / name, keep=3, max_cost=None)] if name else []
    state, history = trainer.fit(begin, phase, epochs=EPOCHS, hooks=chain)
    return trainer.fingerprint(state), len(history)

straight, _ = fit("")
fit("first")  # imports everything while that is possible
trainer.Checkpoints(directory / "first").restore(begin)
if fault == "read-only" and os.geteuid() == 0:
    for path in [directory, *directory.rglob("*")]:
        os.chown(path, 65534, 65534)
    os.seteuid(65534)
try:
    fit("run", hooks.observe(failing))
except Exception as error:
    raised = [type(error).__name__, str(error), *error.__notes__]
else:
    raised = None
left = trainer.Checkpoints(directory / "run", read_only=True).epochs()
mend()
resumed, epochs = fit("run")
end = trainer.Checkpoints(directory / "run", read_only=True).epochs()
print(json.dumps([raised, left, resumed == straight, epochs, end]))
""".replace("EPOCHS", str(EPOCHS))


def run_with(fault, directory):
    """Run, let the fault occur in epoch 3, repair it, resume; return the child's report."""
    command = [sys.executable, "-c", CHILD, str(directory), fault]
    child = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert child.returncode == 0, child.stderr
    assert "Traceback" not in child.stderr
    return json.loads(child.stdout)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 16 MB, some 12 states."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system can be mounted by root only, and not in every container")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.fixture
def public():
    """A directory that another user can reach and own."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        yield directory


def check(reported, said):
    raised, left, same, epochs, end = reported
    assert raised is not None, "no save failed"
    assert any(said in text for text in raised), raised
    assert any("while saving epoch 3" in note for note in raised), raised
    assert left == [1, 2]
    assert same
    assert epochs == EPOCHS - 2
    assert end == [4, 5, 6]


def test_a_file_that_grows_too_large_fails_only_the_save(tmp_path):
    reported = run_with("file size", tmp_path)
    check(reported, "File too large")
    kind, said, *_ = reported[0]
    assert kind == "OSError"
    assert re.search(r": 2,\d+,\d+ bytes are needed and \d[\d,]* are free", said)
    assert re.search(rf"run/checkpoints/{STAGE}/arrays/process_0'$", said)


def test_a_full_disk_fails_only_the_save(small_disk):
    reported = run_with("full disk", small_disk)
    check(reported, "No space left on device")
    wanted = rf"bytes are needed and \d+ are free: '/.*/{STAGE}.*'$"
    assert re.search(wanted, reported[0][1])


def test_a_directory_that_turns_read_only_fails_only_the_save(public):
    check(run_with("read-only", public), "Permission denied")


# Damaged checkpoints: the newest intact one is restored, and the final state is the same


def flip(checkpoint):
    file = checkpoint / "arrays/process_0"
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 8
    file.write_bytes(content)


def zero(checkpoint):
    file = checkpoint / "arrays/process_0"
    content = bytearray(file.read_bytes())
    content[: len(content) // 2] = bytes(len(content) // 2)
    file.write_bytes(content)


def truncate(checkpoint):
    os.truncate(checkpoint / "arrays/process_0", 100)


def lose_a_file(checkpoint):
    (checkpoint / "arrays/process_0").unlink()


def lose_the_manifest(checkpoint):
    (checkpoint / "manifest.json").unlink()


def cut_the_manifest(checkpoint):
    os.truncate(checkpoint / "manifest.json", 1000)


def empty(checkpoint):
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


def half(checkpoint):
    """Leave an incomplete copy."""
    shutil.rmtree(checkpoint / "arrays")


DAMAGE = {
    flip: "checksums differ at",
    zero: "checksums differ at",
    truncate: "arrays/process_0 has 100 bytes instead of",
    lose_a_file: "arrays/process_0 is missing",
    lose_the_manifest: "its manifest cannot be read",
    cut_the_manifest: "its manifest does not have its checksum",
    empty: "its manifest cannot be read",
    half: "arrays is missing",
}


@pytest.fixture(scope="module")
def chain():
    """Hooks with hook state."""
    return [hooks.average_params(0.5), hooks.stop_early("train/loss", patience=50)]


@pytest.fixture(scope="module")
def straight(start, train, chain):
    """The fingerprint of an undamaged run."""
    return fingerprint(trainer.fit(start, train, epochs=EPOCHS, hooks=chain)[0])


@pytest.fixture(scope="module")
def four(start, train, chain, tmp_path_factory):
    """A run of four epochs, and its checkpoints."""
    directory = tmp_path_factory.mktemp("four")
    saving = hooks.save_checkpoints(directory, keep=9, max_cost=None)
    trainer.fit(start, train, epochs=4, hooks=[*chain, saving])
    return directory


@pytest.mark.parametrize("damages", [[d] for d in DAMAGE] + [[flip, empty], [half, truncate, zero]])
def test_a_run_resumes_from_the_newest_intact_checkpoint_with_the_same_result(
    start, train, chain, straight, four, tmp_path, caplog, damages
):
    run = shutil.copytree(four, tmp_path / "run")
    for number, damage in zip((4, 3, 2), damages, strict=False):
        damage(run / "checkpoints" / str(number))
    saving = hooks.save_checkpoints(run, keep=9, max_cost=None)
    state, history = trainer.fit(start, train, epochs=EPOCHS, hooks=[*chain, saving])
    assert len(history) == EPOCHS - 4 + len(damages)
    assert fingerprint(state) == straight
    skipped = [r.getMessage() for r in caplog.records if "skipped a damaged" in r.getMessage()]
    assert len(skipped) == len(damages)
    for number, damage, line in zip((4, 3, 2), damages, skipped, strict=False):
        assert f"checkpoint {number} in {run}" in line
        assert DAMAGE[damage] in line
    with Checkpoints(run, read_only=True) as checkpoints:
        assert checkpoints.epochs() == [1, 2, 3, 4, 5, 6]
        assert fingerprint(checkpoints.restore(state, strict=True).state) == straight


def test_without_an_intact_checkpoint_a_run_does_not_start_fresh(
    start, train, chain, four, tmp_path
):
    run = shutil.copytree(four, tmp_path / "run")
    for number, damage in zip((1, 2, 3, 4), DAMAGE, strict=False):
        damage(run / "checkpoints" / str(number))
    saving = hooks.save_checkpoints(run, max_cost=None)
    with pytest.raises(RuntimeError, match="(?s)no checkpoint is intact:.*point 4 .*point 1 "):
        trainer.fit(start, train, epochs=EPOCHS, hooks=[*chain, saving])
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["1", "2", "3", "4"]
