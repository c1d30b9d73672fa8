"""A network that loops over its layers gathers one of them at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

import models
import trainer
from trainer import data, losses

FSDP = [("^params/", trainer.fsdp())]
KERNELS = 6
"""Kernels of a layer of the transformer."""


@pytest.fixture(scope="module")
def source():
    tokens = np.random.default_rng(0).integers(0, 16, (32, 17))
    return data.Arrays({"inputs": tokens[:, :-1], "labels": tokens[:, 1:]}, batch_size=16)


def make_task(layers, *, width=64, precision="float32", **settings):
    settings = {"scan": True} | settings
    network = models.transformer(
        vocabulary=16, context=16, width=width, layers=layers, heads=4, **settings
    )
    optimizer = optax.sgd(0.1)
    return trainer.supervised(network, losses.language_modeling, optimizer, precision=precision)


def predict(task, source):
    """Return what a step exchanges and takes on a device, and the bytes of all layers."""
    shapes = jax.eval_shape(lambda: task.init(jax.random.key(0), source.example))
    rules = models.transformer_rules("fsdp")
    found = trainer.cost(trainer.training(task.step, source), shapes, mesh="data=8", rules=rules)
    layers = jax.tree.leaves(shapes.params["blocks"])
    return found["train"], sum(leaf.size * leaf.dtype.itemsize for leaf in layers)


def test_a_loop_over_split_layers_trains_as_on_one_device(source):
    task = make_task(3, remat=True, dropout=0.1)
    start = task.init(jax.random.key(0), source.example)
    alone, before = trainer.fit(start, trainer.training(task.step, source), epochs=3)
    spread = trainer.spread(start, rules=FSDP)
    assert spread.params["blocks"]["up"]["kernel"].sharding.spec == P(None, None, "data")
    state, history = trainer.fit(spread, trainer.training(task.step, source), epochs=3)
    assert [e["train/loss"] for e in history] == pytest.approx(
        [e["train/loss"] for e in before], rel=1e-6
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-6),
        alone.params,
        state.params,
    )


@pytest.mark.parametrize(
    ("settings", "share"), [({}, 0.8), ({"remat": True, "precision": "bfloat16"}, 0.6)]
)
def test_temporaries_do_not_grow_by_gathered_layers(source, settings, share):
    """What is left: split gradients, and activations (with `remat` the inputs of each layer)."""
    (few, less), (many, more) = (
        predict(make_task(layers, width=256, **settings), source) for layers in (2, 4)
    )
    assert many.temporary_bytes - few.temporary_bytes < share * (more - less)
    gathers = [cost.collectives["all-gather"] for cost in (few, many)]
    assert gathers[1].count - gathers[0].count == 2 * 2 * KERNELS  # forward and backward


def test_layers_are_gathered_inside_the_loop_alone(source):
    task = make_task(4)
    spread = trainer.spread(task.init(jax.random.key(0), source.example), rules=FSDP)
    train = trainer.training(task.step, source, executor="step")
    train.infer_shapes(spread)
    ((traced, _),) = train._shared.traces.values()
    lines = traced.lower().compile().as_text().splitlines()
    gathers = [line for line in lines if " all-gather(" in line or " all-gather-start(" in line]
    stacked = [line for line in gathers if "[4,64," in line or "[4,256," in line]
    assert len(gathers) >= 2 * KERNELS
    assert not stacked


def train_on_digits(network, spec, gathers):
    """Return the state before an epoch, after it with layers split, and after it on one device.

    Asserts how many times a step gathers.
    """
    task = trainer.supervised(network, losses.classification, optax.sgd(0.1))
    digits, _ = data.digits(batch_size=32)
    train = data.Arrays({name: np.asarray(x)[:64] for name, x in digits.arrays.items()}, 32)
    start = task.init(jax.random.key(0), train.example)
    program = trainer.training(task.step, train)
    found = trainer.cost(program, start, mesh="data=8", rules=[("layers", spec)])
    assert found["train"].collectives["all-gather"].count == gathers
    spread = trainer.spread(start, rules=[("layers", spec)])
    state, _ = trainer.fit(spread, program, epochs=1)
    alone, _ = trainer.fit(start, trainer.training(task.step, train), epochs=1)
    return start, state, alone


class Looping:
    """A network that loops over layers, and may also use them otherwise."""

    def __init__(self, otherwise):
        self.otherwise = otherwise

    def init(self, key, inputs):
        return {"layers": jax.random.normal(key, (8, 64, 64)) / 8}, {}

    def apply(self, params, model_state, inputs, *, key, train):
        def layer(x, kernel):
            return jnp.tanh(x @ kernel), None

        outputs, _ = lax.scan(layer, inputs.reshape(-1, 64), params["layers"])
        if self.otherwise:
            outputs = outputs + params["layers"].mean()
        return outputs[:, :10], model_state


@pytest.mark.parametrize(
    ("otherwise", "spec", "gathers"),
    [(False, P(None, "data"), 8 + 8), (True, P(None, "data"), 1), (False, P("data"), 1)],
)
def test_layers_are_gathered_whole_if_a_loop_does_not_take_them_one_by_one(
    otherwise, spec, gathers
):
    _, state, alone = train_on_digits(Looping(otherwise), spec, gathers)
    np.testing.assert_allclose(state.params["layers"], alone.params["layers"], atol=1e-5)


class Frozen:
    """A network whose layers are not trained, as those under adapters."""

    def init(self, key, inputs):
        first, last = jax.random.normal(key, (64, 64)) / 8, jnp.ones((64, 10)) / 64
        layers = jax.random.normal(key, (8, 64, 64)) / 8
        return {"first": first, "last": last}, {"base": {"layers": layers}}

    def apply(self, params, model_state, inputs, *, key, train):
        def layer(x, kernel):
            return jnp.tanh(x @ kernel), None

        x = inputs.reshape(-1, 64) @ params["first"]
        outputs, _ = lax.scan(layer, x, model_state["base"]["layers"])
        return outputs @ params["last"], model_state


@pytest.mark.parametrize(("spec", "gathers"), [(P(None, "data"), 8 + 8), (P("data"), 1)])
def test_frozen_layers_are_gathered_as_trained_ones_and_stay_split(spec, gathers):
    start, state, alone = train_on_digits(Frozen(), spec, gathers)
    np.testing.assert_allclose(state.params["first"], alone.params["first"], atol=1e-5)
    layers = state.model_state["base"]["layers"]
    assert layers.sharding.spec == spec
    np.testing.assert_array_equal(layers, start.model_state["base"]["layers"])
