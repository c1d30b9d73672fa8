"""A store, a run with checkpoints, and a suite that evaluates them."""

import dataclasses
import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import trainer
from trainer import Checkpoints
from trainer.evaluators import Suite
from trainer.runs import Run, Store

EPOCHS = (1, 2, 3)


@dataclasses.dataclass
class Project:
    """A directory of runs and its store."""

    folder: Path
    states: dict[int, trainer.TrainState]

    @property
    def run(self):
        return self.folder / "one"

    def request(self, *epochs, suite="digits"):
        """Request evaluations as training does."""
        run = Run(self.run)
        requested = [run.request_evaluation(suite, epoch) for epoch in epochs]
        run.close()
        assert all(requested)

    def remove(self, epoch):
        """Remove a checkpoint, as pruning does."""
        shutil.rmtree(self.run / "checkpoints" / str(epoch))
        with Store(self.folder) as store:
            store.connection.execute("UPDATE commits SET present = 0 WHERE epoch = ?", (epoch,))


@pytest.fixture(scope="session")
def saved(start, tmp_path_factory):
    """A run with three checkpoints of different parameters, to copy."""
    folder = tmp_path_factory.mktemp("saved")
    states = {}
    with Checkpoints(folder / "one", keep=5) as checkpoints:
        for epoch in EPOCHS:
            params = jax.tree.map(lambda w, n=epoch: w * n + n, start.params)
            states[epoch] = start.replace(
                params=params, epoch=jnp.int32(epoch), step=jnp.int32(7 * epoch)
            )
            checkpoints.save(states[epoch], scores={"val/loss": 1 / epoch})
            checkpoints.wait()
    return Project(folder, states)


@pytest.fixture
def project(saved, tmp_path):
    """The run in a directory of its own, to be evaluated and damaged."""
    shutil.copytree(saved.run, tmp_path / "one")
    return Project(tmp_path, saved.states)


@pytest.fixture
def store(project):
    """The project's store."""
    with Store(project.folder) as store:
        yield store


@pytest.fixture
def suite(start, val):
    """The suite `digits`."""
    return Suite("digits", start, val)


@pytest.fixture
def until():
    """Return a function that waits for a condition, with a time limit."""

    def until(condition, seconds=60):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.01)

    return until
