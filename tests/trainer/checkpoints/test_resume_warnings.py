"""Arrays of a script with which the state starts, where the checkpoint has others."""

import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hooks
import models
import trainer
from trainer import data
from trainer.checkpoints.resume_warnings import Difference, mark_starting_arrays
from trainer.loop.closure_settings import hash_array

SAID = "was saved by a script with other settings"


def _build(base, head):
    """A network of a frozen base in the model state, and a head that starts as given."""

    def init(key, example):
        return {"head": {"kernel": head}}, {"base": {"kernel": base}}

    def apply(params, model_state, inputs, *, key, train):
        hidden = inputs @ model_state["base"]["kernel"]
        return hidden @ params["head"]["kernel"], model_state

    return models.Network(init, apply)


def _squared(outputs, batch):
    return {"loss": jnp.sum((outputs - 1) ** 2, axis=-1)}


def _train(run, base, head, epochs):
    source = data.Arrays({"inputs": np.ones((4, 2), np.float32)}, batch_size=2)
    network = _build(jnp.full((2, 3), base), jnp.full((3, 1), head))
    task = trainer.supervised(network, _squared, optax.sgd(0.01))
    return trainer.fit(
        task.init(jax.random.key(0), source.example),
        trainer.training(task.step, source),
        epochs=epochs,
        hooks=hooks.save_checkpoints(run, max_cost=None),
    )[0]


@pytest.mark.usefixtures("compiled_quickly")
def test_a_resume_with_another_frozen_array_is_refused(tmp_path, caplog):
    _train(tmp_path, 0.25, 0.5, 1)
    said = (
        r"(?s)saved with other frozen arrays.*model_state/base/kernel: saved float32\[2, 3\] \w+, "
        r"now float32\[2, 3\] \w+\n.*in another directory"
    )
    with pytest.raises(ValueError, match=said) as caught:
        _train(tmp_path, 0.75, 0.5, 2)
    assert "params/head" not in str(caught.value)
    assert f"in restoring checkpoint 1 in {tmp_path}/checkpoints" in caught.value.__notes__
    caplog.clear()
    state = _train(tmp_path, 0.25, 0.5, 2)
    assert SAID not in caplog.text
    assert int(state.epoch) == 2


@pytest.mark.usefixtures("compiled_quickly")
def test_parameters_that_were_trained_since_stay_and_every_resume_says_so(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    before = _train(tmp_path, 0.25, 0.5, 1)
    for epochs in (1, 2):
        caplog.clear()
        after = _train(tmp_path, 0.25, 2.0, epochs)
        (warning,) = [r.getMessage() for r in caplog.records if SAID in r.getMessage()]
        assert re.search(r"saved float32\[3, 1\] \w+, now .*; the saved one is in force", warning)
        assert "the new one is in force" not in warning
        if epochs == 1:
            np.testing.assert_array_equal(
                after.params["head"]["kernel"], before.params["head"]["kernel"]
            )


def test_of_equal_arrays_the_one_of_the_same_path_is_meant():
    """The first layer was trained since, and the second is frozen."""
    zeros, ones, twos = (jnp.full(2, value) for value in (0.0, 1.0, 2.0))
    start = trainer.TrainState.create(
        params={"0": {"bias": ones}, "1": {"bias": ones}, "other": zeros},
        rng=jax.random.key(0),
    )
    restored = start.replace(params={"0": {"bias": twos}, "1": {"bias": zeros}, "other": zeros})
    first, second = (
        Difference("phase train", f"given[0].{n}.bias", hash_array(zeros), hash_array(ones))
        for n in "01"
    )
    apart = Difference("phase train", "rate", hash_array(zeros), hash_array(ones))
    marked = mark_starting_arrays([first, apart], start, restored)
    assert marked == [first._replace(leaf="params/0/bias"), apart]
    assert [one.kept for one in marked] == [True, False]
    with pytest.raises(ValueError, match="params/1/bias: saved"):
        mark_starting_arrays([first, second], start, restored)
