"""Evaluation without training, also of another run's checkpoint."""

from __future__ import annotations

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hooks
import trainer


@pytest.fixture(scope="module")
def test_split(task, digits):
    """The training split, evaluated as a test split of its own."""
    return trainer.evaluation(task.measure, digits[0], name="test")


def test_it_equals_numpy_over_whole_splits(start, task, val, digits):
    scores = trainer.evaluate(start, val)
    images, labels = (np.asarray(digits[1].arrays[name]) for name in ("inputs", "labels"))
    w, b = (np.asarray(start.params[name], np.float64) for name in ("w", "b"))
    logits = images.reshape(len(images), -1) @ w + b
    wrong = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]
    assert scores.keys() == {"val/loss", "val/accuracy"}
    assert scores["val/loss"] == pytest.approx(wrong.mean(), abs=1e-5)
    assert scores["val/accuracy"] == (logits.argmax(1) == labels).mean()


def test_several_splits_are_measured_and_the_state_stays_unchanged(start, val, test_split):
    before = trainer.fingerprint(start)
    scores = trainer.evaluate(start, [val, test_split])
    assert scores == trainer.evaluate(start, val) | trainer.evaluate(start, test_split)
    assert {"val/loss", "test/loss"} <= scores.keys()
    assert trainer.fingerprint(start) == before


def test_a_state_of_numpy_arrays_is_accepted(start, val):
    on_host = start.replace(params=jax.tree.map(np.asarray, start.params))
    assert trainer.evaluate(on_host, val) == trainer.evaluate(start, val)


def test_it_equals_the_scores_of_a_run(start, train, val, tmp_path):
    saving = hooks.save_checkpoints(tmp_path, keep=1, best="val/loss", mode="max", max_cost=None)
    final, history = trainer.fit(start, train, epochs=3, hooks=[hooks.evaluate(val), saving])
    newest = trainer.restore(tmp_path, start)
    assert trainer.fingerprint(newest) == trainer.fingerprint(final)
    assert trainer.evaluate(newest, val)["val/loss"] == history[-1]["val/loss"]
    worst = trainer.restore(tmp_path, start, best="val/loss", mode="max")
    assert trainer.evaluate(worst, val)["val/loss"] == history[0]["val/loss"]


def test_labels_that_do_not_suit_the_task_are_found(start, task):
    source = trainer.data.Arrays(
        {"inputs": jnp.zeros((2, 8, 8)), "labels": jnp.array([0, 10])}, batch_size=2
    )
    with pytest.raises(ValueError, match="labels must be between 0 and 9"):
        trainer.evaluate(start, trainer.evaluation(task.measure, source))


def test_other_phases_are_refused(start, train, val):
    with pytest.raises(ValueError, match=r"phase 'train' may change it"):
        trainer.evaluate(start, train)
    with pytest.raises(ValueError, match=r"names of their own; got \['val', 'val'\]"):
        trainer.evaluate(start, [val, val])
    with pytest.raises(ValueError, match=r"names of their own; got \[\]"):
        trainer.evaluate(start, [])
    with pytest.raises(TypeError, match="got 'val'"):
        trainer.evaluate(start, ["val"])


def test_several_splits_are_traced_on_this_thread_and_compiled_once(start, task, digits):
    threads = []

    def measure(state, batch):  # of its own, which shares nothing with other tests
        threads.append(threading.current_thread().name)
        return task.measure.function(state, batch)

    phases = [
        trainer.evaluation(measure, source, name=name)
        for source, name in zip(digits, ("train", "val"), strict=True)
    ]
    scores = trainer.evaluate(start, phases)
    traced = list(threads)
    assert trainer.evaluate(start, phases) == scores
    assert threads == traced
    assert set(traced) == {threading.current_thread().name}  # where settings of JAX hold
    assert len(phases[0]._shared.compiled) == 2
