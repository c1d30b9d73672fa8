"""Cost on a mesh: what is predicted is what lies on a device, and what the program exchanges."""

import math
import re
from collections import Counter

import jax
import numpy as np
import optax
import pytest

import models
import trainer
from trainer import data, losses, rl
from trainer.rl.environments import cartpole

pytestmark = pytest.mark.usefixtures("compiled_quickly")

DEVICES = 8
FSDP = [("^params/", trainer.fsdp())]
COLLECTIVES = r"(all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\("


@pytest.fixture(scope="module")
def task():
    """A network whose kernels are large enough to be split."""
    return trainer.supervised(models.mlp(hidden=(64,)), losses.classification, optax.adam(1e-2))


@pytest.fixture(scope="module")
def example(digits):
    return digits[0].example


def compiled_collectives(phase, state):
    """Count the collectives in the function that training would run, by kind."""
    phase._shared.traces.clear()
    phase.infer_shapes(state)
    ((traced, _),) = phase._shared.traces.values()
    return Counter(re.findall(COLLECTIVES, traced.lower().compile().as_text()))


@pytest.mark.parametrize("rules", [(), FSDP], ids=["data_parallel", "fsdp"])
def test_prediction_equals_what_lies_on_a_device_and_what_the_program_exchanges(
    task, example, digits, rules
):
    start = task.init(jax.random.key(0), example)
    spread = trainer.spread(start, rules=rules)
    train = trainer.training(task.step, digits[0])
    there = trainer.cost(train, start, mesh=f"data={DEVICES}", rules=rules)["train"]
    here = trainer.cost(train, spread)["train"]
    assert here == there
    for field in ("params", "opt_state"):
        leaves = jax.tree.leaves(getattr(spread, field))
        held = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
        assert there.state_bytes[field] == held
    found = {kind: each.count for kind, each in there.collectives.items()}
    assert found == compiled_collectives(train, spread)
    (exchanged,) = (there.collectives["all-reduce"],)
    gradients = sum(leaf.nbytes for leaf in jax.tree.leaves(start.params))
    assert gradients <= exchanged.bytes <= gradients + 64  # the metrics too
    assert there.temporary_bytes > 0
    alone = trainer.cost(train, start)["train"]
    assert (alone.collectives, alone.flops) == ({}, there.flops)


def test_a_model_larger_than_memory_is_predicted_from_shapes_for_devices_that_are_not_there():
    network = models.transformer(
        vocabulary=32_000, context=64, width=8192, layers=60, heads=64, scan=True
    )
    task = trainer.supervised(network, losses.language_modeling, optax.sgd(0.1, momentum=0.9))
    tokens = np.zeros((64, 65), np.int32)
    source = data.Arrays({"inputs": tokens[:, :-1], "labels": tokens[:, 1:]}, batch_size=64)
    shapes = jax.eval_shape(lambda: task.init(jax.random.key(0), source.example))
    whole = sum(math.prod(leaf.shape) * 4 for leaf in jax.tree.leaves(shapes.params))
    assert whole > 150e9
    found = trainer.cost(
        trainer.training(task.step, source),
        shapes,
        mesh="data=64,model=8",
        rules=models.transformer_rules("fsdp+tensor"),
    )["train"]
    assert found.state_bytes["params"] == found.state_bytes["opt_state"]
    assert found.state_bytes["params"] / whole < 1.02 / (64 * 8)
    assert found.collectives["all-reduce"].count >= 4 * 60  # for each of the layers in the loop
    assert found.peak is None


def test_what_each_phase_of_an_agent_exchanges_is_predicted():
    config = rl.PPOConfig(envs=DEVICES, steps=4, epochs=1, minibatches=2)
    agent = rl.ppo(models.actor_critic(actions=2), cartpole(), optax.sgd(1e-2), config)
    start = agent.init(jax.random.key(0))
    costs = trainer.cost(agent.program, start, mesh=f"data={DEVICES}")
    assert (
        costs["rollout"].collectives["all-gather"].count > 0
    )  # of what was played, for the update
    assert costs["update"].collectives["all-reduce"].count >= config.minibatches
    environment = jax.tree.leaves(start.carry["environment"])
    split = sum(leaf.nbytes for leaf in environment) // DEVICES
    assert split <= costs["update"].state_bytes["carry"] < 2 * split


@pytest.mark.parametrize("mesh", [None, "members=4"])
def test_a_population_is_predicted_from_shapes_as_from_its_state(task, example, digits, mesh):
    keys = jax.random.split(jax.random.key(0), 4)
    program = trainer.population(trainer.training(task.step, digits[0]), 4)

    def make():
        return trainer.population_of(lambda key: task.init(key, example), keys)

    shapes, state = jax.eval_shape(make), make()
    found = trainer.cost(program, shapes, mesh=mesh)["train"]
    assert found == trainer.cost(program, state, mesh=mesh)["train"]
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    assert found.state_bytes["params"] == held // (1 if mesh is None else 4)
    assert set(found.collectives) <= {"all-gather"}  # of the metrics: members exchange nothing


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mesh": "data=3"}, "a batch of 32 examples cannot be split over the 3 devices"),
        ({"mesh": "data"}, "a mesh is written as axes and sizes, each axis once, data=4,model=2"),
        ({"mesh": "data=2,data=4"}, "each axis once, data=4,model=2; got 'data=2,data=4'"),
        ({"mesh": "=4"}, "a mesh is written as axes and sizes, .* got '=4'"),
        ({"mesh": "data=0"}, "data must be a whole number of at least 1"),
        ({"mesh": ""}, "a mesh needs at least one axis, data=64; got ''"),
        ({"rules": FSDP}, r"and there is none; got \['\^params/'\]: pass mesh= too"),
        ({"mesh": "data=8", "rules": [("nothing$", trainer.fsdp())]}, "no path of the state"),
    ],
)
def test_meshes_and_rules_that_do_not_suit_are_refused(task, example, digits, settings, said):
    train = trainer.training(task.step, digits[0])
    with pytest.raises(ValueError, match=said):
        trainer.cost(train, task.init(jax.random.key(0), example), **settings)


def test_a_mesh_of_another_type_is_refused(task, example, digits):
    train = trainer.training(task.step, digits[0])
    with pytest.raises(TypeError, match=r"a mesh is trainer.mesh\(...\), or .*; got a dict"):
        trainer.cost(train, task.init(jax.random.key(0), example), mesh={"data": 8})
