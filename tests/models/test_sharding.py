"""Rules that split the transformer over a mesh."""

import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import models
import trainer
from trainer import data, losses
from trainer.phases.costs.collectives import count_collectives

pytestmark = pytest.mark.usefixtures("compiled_quickly")


@pytest.fixture(scope="module")
def task():
    network = models.transformer(vocabulary=16, context=8, width=32, layers=1, heads=4)
    return trainer.supervised(network, losses.language_modeling, optax.sgd(0.1))


@pytest.fixture(scope="module")
def source():
    tokens = np.random.default_rng(0).integers(0, 16, (32, 9))
    return data.Arrays({"inputs": tokens[:, :-1], "labels": tokens[:, 1:]}, batch_size=16)


@pytest.fixture(scope="module")
def start(task, source):
    return task.init(jax.random.key(0), source.example)


@pytest.mark.parametrize(
    ("split", "axes", "wanted"),
    [
        ("fsdp", {"data": 8}, {"query": ("data", None), "out": (None, "data")}),
        ("tensor", {"data": 4, "model": 2}, {"query": (None, "model"), "out": ("model", None)}),
        (
            "fsdp+tensor",
            {"data": 2, "model": 4},
            {"query": ("data", "model"), "out": ("model", "data")},
        ),
    ],
)
def test_rules_split_the_kernels_of_attention(start, split, axes, wanted):
    spread = trainer.spread(start, trainer.mesh(**axes), rules=models.transformer_rules(split))
    attention = spread.params["blocks"]["0"]["attention"]
    for name, spec in wanted.items():
        sharding = attention[name]["kernel"].sharding
        assert sharding.is_equivalent_to(
            jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec(*spec)), 2
        )


def test_a_transformer_that_is_split_trains_as_on_one_device(task, source, start):
    """By both axes at once; a captioner, below, by one."""
    alone, _ = trainer.fit(start, trainer.training(task.step, source), epochs=2)
    rules = models.transformer_rules("fsdp+tensor")
    spread = trainer.spread(start, trainer.mesh(data=2, model=4), rules=rules)
    state, _ = trainer.fit(spread, trainer.training(task.step, source), epochs=2)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=2e-6),
        alone.params,
        state.params,
    )


def count_exchanges(task, source, compile_on_mesh):
    """Count what a step of a transformer exchanges whose heads and kernels are split."""
    shapes = jax.eval_shape(lambda: task.init(jax.random.key(0), source.example))
    arrays = jax.tree.map(lambda array: array[:16], source.arrays)  # one step
    step = trainer.training(task.step, data.Arrays(arrays, batch_size=16))
    rules = models.transformer_rules("fsdp+tensor")
    text = compile_on_mesh(step, shapes, "data=2,model=4", rules).as_text()
    return Counter({kind: each.count for kind, each in count_collectives(text).items()})


def test_a_layer_with_split_heads_exchanges_four_sums_and_its_split_kernels(
    source, compile_on_mesh
):
    """Two forward and two backward, as in Megatron-LM; nothing within attention."""

    def count(layers):
        network = models.transformer(vocabulary=16, context=8, width=32, layers=layers, heads=4)
        task = trainer.supervised(network, losses.language_modeling, optax.sgd(0.1))
        return count_exchanges(task, source, compile_on_mesh)

    assert count(2) - count(1) == {"all-reduce": 4, "all-gather": 6}


def make_captioner(layers):
    network = models.captioner(
        vocabulary=16, context=8, channels=1, encoder_layers=1, layers=layers, heads=4, width=32
    )
    task = trainer.supervised(network, losses.captioning, optax.sgd(0.1))
    drawn = np.random.default_rng(0)
    images = drawn.random((32, 8, 8, 1), np.float32)
    tokens = drawn.integers(1, 16, (32, 8), np.int32)
    arrays = {"inputs": {"image": images, "tokens": tokens}, "labels": tokens}
    return task, data.Arrays(arrays, batch_size=16)


def test_a_layer_that_attends_to_an_image_exchanges_two_sums_more(compile_on_mesh):
    """One forward, and one backward to the text; those to the image are added up before."""
    two, one = (count_exchanges(*make_captioner(layers), compile_on_mesh) for layers in (2, 1))
    assert two - one == {"all-reduce": 6, "all-gather": 10}
    assert set(one) <= {"all-reduce", "all-gather"}


def test_a_captioner_that_is_split_trains_as_on_one_device():
    task, source = make_captioner(1)
    start = task.init(jax.random.key(0), source.example)
    alone, _ = trainer.fit(start, trainer.training(task.step, source), epochs=2)
    rules = models.transformer_rules("tensor")
    spread = trainer.spread(start, trainer.mesh(data=2, model=4), rules=rules)
    cross = spread.params["text"]["blocks"]["0"]["cross"]
    splits = {name: tuple(cross[name]["kernel"].sharding.spec) for name in cross}
    columns, rows = (None, "model"), ("model", None)
    assert splits == {"query": columns, "key": columns, "value": columns, "out": rows}
    state, _ = trainer.fit(spread, trainer.training(task.step, source), epochs=2)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=2e-6),
        alone.params,
        state.params,
    )


def test_layers_in_a_scan_and_odd_dimensions_are_split_where_they_can_be():
    sizes = {"vocabulary": 15, "context": 8, "width": 32, "layers": 2, "heads": 4}
    network = models.transformer(**sizes, scan=True, architecture=models.Architecture(gated=True))
    tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    params, _ = jax.eval_shape(network.init, jax.random.key(0), tokens)
    rules, mesh = models.transformer_rules("fsdp+tensor"), trainer.mesh(data=4, model=2)
    ((pattern, columns), _, (_, embedding)) = rules
    for name in ("gate", "up"):
        assert re.match(pattern, f"params/blocks/{name}/kernel")
        shape = params["blocks"][name]["kernel"].shape
        assert tuple(columns(shape, mesh)) == (None, "data", "model")
    assert tuple(embedding(params["embed"]["embedding"].shape, mesh)) == (None, "data")


def test_an_unknown_split_and_a_missing_axis_are_refused(start):
    with pytest.raises(ValueError, match="one of fsdp, tensor, fsdp\\+tensor; got 'zero'"):
        models.transformer_rules("zero")
    said = (
        r"blocks/0/attention/key/kernel \[32, 32\] cannot be split by P\w*\(None, 'model'\) over "
        r"data=8: the mesh has no axis 'model' \(there is: data\); .*\(data=8, model=...\)"
    )
    with pytest.raises(ValueError, match=said):
        trainer.spread(start, trainer.mesh(), rules=models.transformer_rules("tensor"))
