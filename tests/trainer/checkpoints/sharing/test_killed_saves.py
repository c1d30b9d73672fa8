"""A process that is killed while it saves a checkpoint which refers to an earlier one."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

import trainer
from trainer import Checkpoints, fingerprint

CHILD = """
import os, pathlib, shutil, signal, sys
import jax, numpy as np
import trainer
from trainer.checkpoints import publishing
from trainer.checkpoints.arrays import array_storage

def make(epoch):
    state = trainer.TrainState.create(
        params={"w": np.full(1000, epoch, np.float32)},
        model_state={"base": np.arange(2.0**15, dtype=np.float32)},
        rng=jax.random.key(0),
    )
    return state.replace(epoch=np.int32(epoch))

def die_at(module, name, *, after):
    real = getattr(module, name)
    def die(*arguments, **options):
        if after:
            real(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)
    setattr(module, name, die)

PLACES = [
    (os, "link", False), (os, "link", True), (array_storage, "save_arrays", True),
    (publishing, "write_durably", True), (publishing, "publish", False),
    (publishing, "publish", True), (shutil, "rmtree", False), (shutil, "rmtree", True),
]

if __name__ == "__main__":
    for place, (module, name, after) in enumerate(PLACES):
        if not (child := os.fork()):
            with trainer.Checkpoints(pathlib.Path(sys.argv[1], str(place)), keep=2) as checkpoints:
                for epoch in (1, 2, 3):
                    checkpoints.save(make(epoch))
                checkpoints.wait()
                die_at(module, name, after=after)
                checkpoints.save(make(4))
            os._exit(0)
        print(os.WTERMSIG(os.waitpid(child, 0)[1]))
"""


@pytest.fixture(scope="module")
def make():
    """A function that makes the state of an epoch, most of which never changes."""
    names = {"__name__": "child"}
    exec(CHILD, names)
    return names["make"]


def test_killed_at_any_place_of_a_save_the_run_resumes_and_loses_nothing(tmp_path, make):
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert child.stdout.split() == [str(int(signal.SIGKILL))] * 8, child.stderr
    newest = []
    for place in range(8):
        run = tmp_path / str(place)
        with Checkpoints(run, keep=2) as checkpoints:
            found = checkpoints.restore(make(0))
            assert fingerprint(found.state) == fingerprint(make(found.epoch))
            newest.append(found.epoch)
            for epoch in range(found.epoch + 1, 7):
                checkpoints.save(make(epoch))
        folder = run / "checkpoints"
        assert sorted(path.name for path in folder.iterdir()) == ["5", "6"]
        shared = set(folder.rglob("*/arrays/process_0.*"))
        assert len({file.stat().st_ino for file in shared}) == 1
        assert {file.stat().st_nlink for file in shared} == {2}
        assert fingerprint(trainer.restore(run, make(0))) == fingerprint(make(6))
    assert newest == [3, 3, 3, 3, 3, 4, 4, 4]
