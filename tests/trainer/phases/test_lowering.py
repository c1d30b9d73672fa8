"""Every kind of phase lowers for GPUs and TPUs, from a CPU, on one device and on a mesh.

The fused attention of cuDNN does not: JAX refuses it where cuDNN is not installed.
"""

import jax
import numpy as np
import optax
import pytest

import models
import trainer
from trainer import data, losses, rl
from trainer.placement.virtual_meshes import place_shapes
from trainer.rl.environments import cartpole

pytestmark = pytest.mark.usefixtures("compiled_quickly")

DEVICES = 8
FSDP = [("^params/", trainer.fsdp())]


def images(size=16):
    """Build random images of 8 by 8, with labels."""
    rng = np.random.default_rng(0)
    inputs = rng.random((2 * size, 8, 8, 1), np.float32)
    return data.Arrays({"inputs": inputs, "labels": rng.integers(0, 10, 2 * size)}, size)


def supervised(network, loss, source, **settings):
    """Return a function that makes a state, and the phases of training and evaluation."""
    task = trainer.supervised(network, loss, optax.adamw(1e-3), **settings)
    program = trainer.training(task.step, source), trainer.evaluation(task.measure, source)
    return lambda: task.init(jax.random.key(0), source.example), program


def mlp():
    return supervised(models.mlp(hidden=(64,)), losses.classification, images(), clip_norm=1.0)


def cnn():
    return supervised(models.cnn(), losses.classification, images(), precision="bfloat16")


def transformer(**settings):
    sizes = {"vocabulary": 64, "context": 16, "width": 64, "layers": 2, "heads": 4}
    tokens = np.zeros((32, 17), np.int32)
    source = data.Arrays({"inputs": tokens[:, :-1], "labels": tokens[:, 1:]}, 16)
    return supervised(
        models.transformer(**sizes, **settings), losses.language_modeling, source, accumulate=2
    )


def agent(**settings):
    config = rl.PPOConfig(envs=DEVICES, steps=4, epochs=2, minibatches=2, normalize_rewards=True)
    network = models.actor_critic(actions=2, **settings)
    made = rl.ppo(network, cartpole(), optax.adam(1e-3), config)
    return lambda: made.init(jax.random.key(0)), made.program


def members():
    task = trainer.supervised(models.mlp(hidden=(8,)), losses.classification, optax.adam(1e-2))
    source, keys = images(), jax.random.split(jax.random.key(0), DEVICES)

    made = trainer.population_of(lambda key: task.init(key, source.example), keys)
    return lambda: made, (trainer.population(trainer.training(task.step, source), DEVICES),)


PROGRAMS = {
    "mlp": (mlp, {}),
    "cnn": (cnn, {}),
    "transformer": (transformer, {}),
    "transformer, scanned": (transformer, {"scan": True, "remat": True, "dropout": 0.1}),
    "agent": (agent, {}),
    "recurrent agent": (agent, {"recurrent_size": 8}),
    "population": (members, {}),
}


@pytest.mark.parametrize("mesh", [None, "data=8"], ids=["one device", "mesh"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_phase_lowers_for_gpus_and_tpus(name, mesh):
    make, settings = PROGRAMS[name]
    start, program = make(**settings)
    mesh = "members=8" if mesh and name == "population" else mesh
    rules = FSDP if mesh == "data=8" else ()
    state, output = place_shapes(jax.eval_shape(start), mesh, rules), None
    for phase in program:
        output = phase.infer_shapes(state, output).output
        *_, (traced, _) = phase._shared.traces.values()
        text = traced.lower(lowering_platforms=("cuda", "tpu")).as_text()
        assert f"num_partitions = {DEVICES if mesh else 1} " in text
