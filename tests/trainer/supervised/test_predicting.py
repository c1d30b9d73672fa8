"""Predictions: of every example, in order, whatever source and batch size; compiled once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import trainer
from trainer import data, losses

pytestmark = pytest.mark.usefixtures("compiled_quickly")


@pytest.fixture(scope="module")
def inputs(digits):
    return np.asarray(digits[1].arrays["inputs"])  # 50 of them


@pytest.fixture(scope="module")
def wanted(start, inputs):
    return inputs.reshape(50, -1) @ np.asarray(start.params["w"]) + np.asarray(start.params["b"])


SOURCES = {
    "Arrays": lambda x: data.Arrays({"inputs": x}, 16),
    "Arrays in one batch": lambda x: data.Arrays({"inputs": x}, 64),
    "MemoryMap": lambda x: data.MemoryMap({"inputs": x}, 16, superbatch=2),
    "Stream": lambda x: data.Stream([{"inputs": x[at : at + 16]} for at in range(0, 50, 16)], 3),
}


@pytest.mark.parametrize("name", SOURCES)
def test_outputs_are_of_every_example_in_order_without_padding(name, start, linear, inputs, wanted):
    given = trainer.predict(start, linear, SOURCES[name](inputs))
    assert type(given) is np.ndarray
    assert given.shape == (50, 10)
    np.testing.assert_allclose(given, wanted, atol=1e-5)


def test_one_compiled_function_serves_last_batches_other_data_and_other_parameters(
    start, linear, inputs, counting_compilations
):
    trainer.predict(start, linear, data.Arrays({"inputs": inputs}, 24))
    other = start.replace(params=jax.tree.map(lambda x: x + 1, start.params))
    with counting_compilations() as counts:
        trainer.predict(other, linear, data.Arrays({"inputs": inputs[::-1]}, 24))
    assert counts == []


def test_the_outputs_of_a_task_are_those_that_it_measures(digits, linear, inputs):
    task = trainer.supervised(linear, losses.classification, optax.sgd(0.1), precision="bfloat16")
    state = task.init(jax.random.key(0), digits[1].example)
    given = trainer.predict(state, task.outputs, digits[1])
    right = (given.argmax(1) == np.asarray(digits[1].arrays["labels"])).mean()
    assert given.dtype == np.float32
    assert (
        right
        == trainer.evaluate(state, trainer.evaluation(task.measure, digits[1]))["val/accuracy"]
    )
    assert not np.array_equal(given, trainer.predict(state, linear, digits[1]))


def test_a_function_may_return_several_smaller_outputs(start, linear, digits, wanted):
    def best(state, batch):
        logits, _ = linear.apply(state.params, {}, batch["inputs"], key=None, train=False)
        return {"class": logits.argmax(1), "right": logits.argmax(1) == batch["labels"]}

    given = trainer.predict(start, best, digits[1])
    assert given["class"].tolist() == wanted.argmax(1).tolist()
    assert given["right"].shape == (50,)


@pytest.mark.parametrize("name", SOURCES)
def test_a_function_of_the_whole_batch_gets_the_last_one_at_its_own_size(name, start, inputs):
    def centred(state, batch):
        rows = batch["inputs"].reshape(len(batch["inputs"]), -1)
        return rows - rows.mean(0)

    size, rows = 64 if "one" in name else 16, inputs.reshape(50, -1)
    wanted = [rows[at : at + size] - rows[at : at + size].mean(0) for at in range(0, 50, size)]
    given = trainer.predict(start, centred, SOURCES[name](inputs), whole_batch=True)
    np.testing.assert_allclose(given, np.concatenate(wanted), atol=1e-6)


def test_the_state_is_unchanged_and_may_be_of_numpy(start, linear, digits, wanted):
    before = trainer.fingerprint(start)
    on_host = start.replace(params=jax.tree.map(np.asarray, start.params))
    np.testing.assert_allclose(trainer.predict(on_host, linear, digits[1]), wanted, atol=1e-5)
    assert trainer.fingerprint(start) == before


def test_outputs_without_examples_and_other_things_are_errors(start, linear, digits):
    with pytest.raises(
        ValueError, match=r"the 32 examples.*got mean of shape \[\]: pass a function"
    ):
        trainer.predict(start, lambda state, batch: {"mean": batch["inputs"].mean()}, digits[1])
    with pytest.raises(TypeError, match=r"needs a network.*or a function.*task.outputs; got 3"):
        trainer.predict(start, 3, digits[1])
    with pytest.raises(TypeError, match="predict reads a source of data.*got ndarray"):
        trainer.predict(start, linear, np.zeros((3, 64)))
    with pytest.raises(ValueError, match=r"batch\['inputs'\]; there is: \['x'\]"):
        trainer.predict(start, linear, data.Arrays({"x": jnp.zeros(3)}, 2))
    with pytest.raises(ValueError, match="every example exactly once"):
        trainer.predict(
            start, linear, data.Arrays({"inputs": np.zeros((4, 64))}, 2, steps_per_epoch=1)
        )
