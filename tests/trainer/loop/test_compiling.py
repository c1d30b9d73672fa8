"""What a run compiles before its first epoch."""

import jax
import numpy as np
import optax
import pytest

import trainer
from trainer import data, losses


@pytest.fixture
def arrays():
    """Examples of a shape that no other test uses."""
    return {"inputs": np.ones((22, 17), np.float32), "labels": np.arange(22) % 10}


def test_a_start_compiles_the_functions_of_the_task_and_no_copies(
    arrays, linear, state, phase, counting_compilations
):
    trainer.fit(state, phase, epochs=1)  # counting epochs compiles once in a process
    key = jax.random.key(0)
    task = trainer.supervised(linear, losses.classification, optax.adam(1e-2))
    with counting_compilations() as of_data:
        source = data.Arrays(arrays, batch_size=11)
    with counting_compilations() as of_init:
        start = task.init(key, source.example)
    with counting_compilations() as of_fit:
        trainer.fit(start, trainer.training(task.step, source), epochs=1)
    assert (len(of_data), len(of_init), len(of_fit)) == (0, 2, 1)
