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
from trainer.phases.costs.collectives import count_collectives

pytestmark = pytest.mark.usefixtures("compiled_quickly")

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


def compile_step(task, source, compile_on_mesh):
    """Return the compiled step of a split state, and the bytes of all its layers."""
    shapes = jax.eval_shape(lambda: task.init(jax.random.key(0), source.example))
    arrays = {name: array[:16] for name, array in source.arrays.items()}  # one step
    step = trainer.training(task.step, data.Arrays(arrays, batch_size=16))
    compiled = compile_on_mesh(step, shapes, "data=8", models.transformer_rules("fsdp"))
    layers = jax.tree.leaves(shapes.params["blocks"])
    return compiled, sum(leaf.size * leaf.dtype.itemsize for leaf in layers)


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
    ("settings", "share"),
    [
        pytest.param({}, 0.8, marks=pytest.mark.soak),
        ({"remat": True, "precision": "bfloat16"}, 0.6),
    ],
)
def test_layers_are_gathered_inside_the_loop_and_temporaries_do_not_grow_by_them(
    source, settings, share, compile_on_mesh
):
    """What is left: split gradients, and activations (with `remat` the inputs of each layer)."""
    (few, less), (many, more) = (
        compile_step(make_task(layers, width=256, **settings), source, compile_on_mesh)
        for layers in (2, 4)
    )
    temporary = [one.memory_analysis().temp_size_in_bytes for one in (few, many)]
    assert temporary[1] - temporary[0] < share * (more - less)
    lines = many.as_text().splitlines()
    gathers = [line for line in lines if " all-gather(" in line or " all-gather-start(" in line]
    assert len(gathers) >= 2 * KERNELS  # forward and backward
    assert not any("[4,256," in line or "[4,1024," in line for line in gathers)  # not stacked
    found = [count_collectives(one.as_text())["all-gather"].count for one in (few, many)]
    assert found[1] - found[0] == 2 * 2 * KERNELS


def train_on_digits(network, spec, gathers):
    """Return the state before two steps, after them with layers split, and after on one device.

    Asserts how many times a step gathers.
    """
    task = trainer.supervised(network, losses.classification, optax.sgd(0.1))
    digits, _ = data.digits(batch_size=32)
    train = data.Arrays({name: np.asarray(x)[:32] for name, x in digits.arrays.items()}, 32)
    start = task.init(jax.random.key(0), train.example)
    program = trainer.training(task.step, train)  # one step an epoch
    spread = trainer.spread(start, rules=[("layers", spec)])
    state, _ = trainer.fit(spread, program, epochs=2)
    ((traced, _),) = program._shared.traces.values()
    text = traced.lower().compile().as_text()
    assert count_collectives(text)["all-gather"].count == gathers
    alone, _ = trainer.fit(start, program, epochs=2)
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
