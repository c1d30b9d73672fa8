"""What a loss must return and may read, in training and evaluation."""

import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import trainer
from trainer import data

SOURCE = data.Arrays(
    {"inputs": np.ones((8, 3), np.float32), "labels": np.ones((8, 1), np.float32)}, 4
)
NETWORK = SimpleNamespace(
    init=lambda key, x: ({"w": jnp.ones((3, 2))}, {}),
    apply=lambda params, model_state, x, *, key, train: (x @ params["w"], model_state),
)


def squares(outputs, batch):
    return (outputs[:, 0] - batch["labels"][:, 0]) ** 2


MISTAKES = {
    "labels that broadcast": (
        lambda o, b: {"loss": (o[:, 0] - b["labels"]) ** 2},
        ["'loss' per example, [4]", "got [4, 4]", "[4, 1] were broadcast", "array[:, 0]"],
    ),
    "a mean": (
        lambda o, b: {"loss": squares(o, b).mean()},
        ["'loss' per example, [4]", "got []", "do not average over the batch"],
    ),
    "a float": (lambda o, b: {"loss": 1.0}, ["'loss' per example", "got float", "average"]),
    "another metric": (
        lambda o, b: {"loss": squares(o, b), "error": jnp.abs(o)},
        ["'error' per example, [4]", "got [4, 2]", "average over the axes after the first"],
    ),
    "a weight a batch": (
        lambda o, b: {"loss": (squares(o, b), jnp.ones(()))},
        ["'loss' per example, [4]", "got ([4], [])"],
    ),
    "a triple": (
        lambda o, b: {"loss": (squares(o, b),) * 3},
        ["got ([4], [4], [4])", "a pair is (values, weights)"],
    ),
    "an array": (lambda o, b: squares(o, b), ["a dict of values [batch]", '"loss"', "got [4]"]),
    "a scalar": (lambda o, b: squares(o, b).mean(), ["a dict of values [batch]", "got []"]),
    "whole numbers": (
        lambda o, b: {"loss": o[:, 0].astype(int)},
        ["'loss' as floating numbers", "got int32"],
    ),
    "what is not in the batch": (
        lambda o, b: {"loss": o[:, 0] - b["targets"]},
        ["reads 'targets'", "the batch has inputs, labels"],
    ),
    "what the network does not give": (
        lambda o, b: {"loss": b["value"]},
        ["reads 'value'", "the batch has inputs, labels"],
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_training_and_evaluation_name_mistakes(name):
    loss, words = MISTAKES[name]
    task = trainer.supervised(NETWORK, loss, optax.sgd(0.1))
    state = task.init(jax.random.key(0), SOURCE.example)
    phases = trainer.training(task.step, SOURCE), trainer.evaluation(task.measure, SOURCE)
    for phase in phases:
        with pytest.raises((TypeError, ValueError)) as caught:
            phase.list_metric_names(state)
        for word in ["the loss '<lambda>'", *words]:
            assert re.search(re.escape(word), str(caught.value)), (word, str(caught.value))


def test_a_key_error_of_something_else_is_unchanged():
    task = trainer.supervised(NETWORK, lambda o, b: {"loss": {}["labels"]}, optax.sgd(0.1))
    state = task.init(jax.random.key(0), SOURCE.example)
    with pytest.raises(KeyError, match="labels"):
        trainer.training(task.step, SOURCE).list_metric_names(state)


@pytest.mark.parametrize("name", ["weights", "mask"])
def test_a_loss_that_does_not_read_weights_is_an_error(name):
    source = data.Arrays(
        {**jax.tree.map(np.asarray, SOURCE.arrays), name: np.ones(len(SOURCE.arrays["labels"]))},
        batch_size=2,
    )

    def ignoring(outputs, batch):
        return {"loss": outputs[:, 0] ** 2}

    def reading(outputs, batch):
        return {"loss": (outputs[:, 0] ** 2, batch[name].astype("float32"))}

    for loss in (ignoring, reading):
        task = trainer.supervised(NETWORK, loss, optax.sgd(0.1))
        state = task.init(jax.random.key(0), source.example)
        phase = trainer.evaluation(task.measure, source)
        if loss is reading:
            phase.verify(state)
            continue
        with pytest.raises(
            ValueError, match=f"'ignoring' does not read batch..{name}'.*what count"
        ):
            phase.verify(state)
