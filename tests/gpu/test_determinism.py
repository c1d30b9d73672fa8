"""The laws of determinism: the same bits in every run, interrupted or not.

XLA for GPUs promises the same bits only with `--xla_gpu_deterministic_ops=true` in `XLA_FLAGS`,
which must be set before JAX starts; the tests are skipped on a GPU without it.
"""

import functools
import os

import jax
import numpy as np
import optax
import pytest

import hooks
import models
import trainer
from trainer import data, losses, rl
from trainer.rl import environments

FLAG = "--xla_gpu_deterministic_ops=true"


@pytest.fixture(autouse=True)
def _deterministic(platform):
    if platform == "gpu" and FLAG not in os.environ.get("XLA_FLAGS", ""):
        pytest.skip(f"needs XLA_FLAGS={FLAG}")


def train_transformer():
    """Return the start and the program of a transformer in bfloat16 (fused attention on a GPU)."""
    tokens = np.random.default_rng(0).integers(0, 64, (48, 33), np.int32)
    source = data.Arrays({"inputs": tokens[:, :-1], "labels": tokens[:, 1:]}, 8)
    network = models.transformer(vocabulary=64, context=32, layers=2, heads=2, width=64)
    task = trainer.supervised(
        network, losses.language_modeling, optax.adamw(1e-3), precision="bfloat16"
    )
    return task.init(jax.random.key(0), source.example), trainer.training(task.step, source)


def train_cnn():
    """Return the start and the program of a small CNN with dropout."""
    images = np.random.default_rng(0).normal(size=(96, 8, 8, 1)).astype(np.float32)
    labels = np.arange(96, dtype=np.int32) % 10
    source = data.Arrays({"inputs": images, "labels": labels}, 16)
    network = models.cnn(classes=10, channels=(8,), hidden=16, dropout=0.1)
    task = trainer.supervised(network, losses.classification, optax.adamw(1e-3))
    return task.init(jax.random.key(0), source.example), trainer.training(task.step, source)


def train_agent():
    """Return the start and the program of PPO."""
    agent = rl.ppo(
        models.actor_critic(actions=2, hidden=(16,)),
        environments.cartpole(),
        optax.adam(1e-3),
        rl.PPOConfig(envs=8, steps=16, epochs=2, minibatches=2),
    )
    return agent.init(jax.random.key(0)), agent.program


@pytest.fixture(params=[train_transformer, train_cnn, train_agent])
def whole(request, platform):
    """A maker of runs, and the bits of a whole run."""
    return request.param, compute_bits(request.param)


@functools.cache
def compute_bits(make):
    return run(make, 4)


def run(make, epochs, saving=()):
    """Train, newly compiled, and return the fingerprint of the final state."""
    start, program = make()
    state, _ = trainer.fit(start, program, epochs=epochs, hooks=saving)
    return trainer.fingerprint(state.replace(hook_state={}))


def test_two_runs_have_the_same_bits(whole):
    make, bits = whole
    assert run(make, 4) == bits
    assert run(make, 3) != bits


def test_an_interrupted_run_ends_with_the_bits_of_a_whole_one(whole, tmp_path):
    make, bits = whole
    half = run(make, 2, hooks.save_checkpoints(tmp_path / "run"))
    assert half != bits
    assert run(make, 4, hooks.save_checkpoints(tmp_path / "run")) == bits


def test_repeated_passes_have_the_bits_of_single_epochs(whole):
    make, bits = whole
    if make is train_cnn and jax.default_backend() == "cpu":
        pytest.skip("a convolution in a loop is refused on a CPU")
    start, program = make()
    state, _ = trainer.fit(start, trainer.repeated(program, 2), epochs=2)
    assert trainer.fingerprint(state.replace(epoch=2 * state.epoch)) == bits
