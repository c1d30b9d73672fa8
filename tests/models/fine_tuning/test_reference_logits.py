"""A network beside a frozen reference, in training and against what is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import models
import trainer
from trainer import data, losses

pytestmark = pytest.mark.usefixtures("compiled_quickly")

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
PAIRS = {
    "inputs": {
        "tokens": RNG.integers(0, 7, (6, 8)).astype("int32"),
        "segments": np.repeat([[1, 2]], 4, axis=1).repeat(6, axis=0).astype("int32"),
    },
    "labels": RNG.integers(0, 7, (6, 8)).astype("int32"),
    "mask": np.array([[False, True, True, True] * 2] * 6),
}


def init(key, inputs):
    keys = jax.random.split(key)
    embed = jax.random.normal(keys[0], (7, 4))
    return {"embed": embed, "head": jax.random.normal(keys[1], (4, 7))}, {"calls": jnp.int32(0)}


def apply(params, model_state, inputs, *, key, train):
    logits = jnp.tanh(params["embed"][inputs["tokens"]]) @ params["head"]
    return logits, {"calls": model_state["calls"] + train}


NETWORK = models.Network(init, apply)
PARAMS, VARIABLES = init(KEY, PAIRS["inputs"])
START = models.pretrained(NETWORK, PARAMS, VARIABLES)


def train_on(source, network):
    task = trainer.supervised(network, losses.dpo(beta=0.5), optax.sgd(0.5))
    state, history = trainer.fit(
        task.init(KEY, source.example), trainer.training(task.step, source), epochs=3
    )
    return state, [epoch["train/loss"] for epoch in history]


def test_a_reference_in_the_step_and_one_that_is_kept_train_alike():
    source = data.Arrays(PAIRS, batch_size=2)
    known = trainer.add_reference(source, NETWORK, PARAMS, VARIABLES)
    both = models.with_reference(START, NETWORK, PARAMS, VARIABLES)
    kept, wanted = train_on(known, START)
    found, measured = train_on(source, both)
    assert measured == pytest.approx(wanted, rel=1e-6)
    assert wanted[2] < wanted[0]
    np.testing.assert_allclose(found.params["head"], kept.params["head"], rtol=1e-5)
    assert int(found.model_state["network"]["calls"]) == 9
    assert int(found.model_state["reference"]["model_state"]["calls"]) == 0
    frozen = found.model_state["reference"]["params"]
    assert all(np.array_equal(frozen[name], PARAMS[name]) for name in PARAMS)


@pytest.mark.parametrize("kind", [data.Arrays, data.MemoryMap])
def test_every_source_keeps_its_kind_and_the_length_of_its_epochs(kind):
    source = kind(PAIRS, batch_size=4, steps_per_epoch=2)
    known = trainer.add_reference(source, NETWORK, PARAMS, VARIABLES)
    assert (type(known), known.steps_per_epoch) == (kind, 2)
    logits = apply(PARAMS, VARIABLES, PAIRS["inputs"], key=None, train=False)[0]
    scores = jax.nn.log_softmax(logits)[np.arange(6)[:, None], np.arange(8), PAIRS["labels"]]
    wanted = np.where(PAIRS["mask"], scores, 0).reshape(6, 2, 4).sum(-1)
    np.testing.assert_allclose(known.arrays["reference"], wanted, rtol=1e-5)
    assert known.example["reference"].shape == (4, 2)


def test_wrong_references_are_an_error():
    source = data.Arrays(PAIRS, batch_size=2)
    known = trainer.add_reference(source, NETWORK, PARAMS, VARIABLES)
    with pytest.raises(ValueError, match="the source has a reference already"):
        trainer.add_reference(known, NETWORK, PARAMS, VARIABLES)
    with pytest.raises(TypeError, match="add_reference takes a source of pairs"):
        trainer.add_reference([PAIRS], NETWORK, PARAMS, VARIABLES)
    with pytest.raises(ValueError, match="add_reference reads batch"):
        trainer.add_reference(
            data.Arrays({"inputs": PAIRS["inputs"]}, batch_size=2), NETWORK, PARAMS, VARIABLES
        )
    with pytest.raises(TypeError, match="with_reference takes two networks"):
        models.with_reference(NETWORK, PARAMS)
    with pytest.raises(ValueError, match="needs the reference's params"):
        models.with_reference(NETWORK, NETWORK).init(KEY, PAIRS["inputs"])
    with pytest.raises(ValueError, match="with_reference params: the arrays do not fit"):
        models.with_reference(NETWORK, NETWORK, {}).init(KEY, PAIRS["inputs"])
