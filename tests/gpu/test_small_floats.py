"""Training in bfloat16 and float16, with the latter's loss scale."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import models
import trainer
from trainer import data, losses

EPOCHS = 4


@pytest.fixture(scope="module")
def windows():
    """Windows of a text that counts, so that a token says which one is next."""
    starts = np.random.default_rng(0).integers(0, 32, (64, 1))
    tokens = (starts + np.arange(17)).astype(np.int32) % 32
    return data.Arrays({"inputs": tokens[:, :-1], "labels": tokens[:, 1:]}, 8)


def train(windows, precision, *, scale=None):
    """Train a small transformer; return the state and the history."""
    network = models.transformer(vocabulary=32, context=16, layers=2, heads=2, width=32)
    task = trainer.supervised(
        network, losses.language_modeling, optax.adam(3e-3), precision=precision
    )
    start = task.init(jax.random.key(0), windows.example)
    if scale is not None:
        loss_scale = {**start.carry["loss_scale"], "scale": jnp.float32(scale)}
        start = start.replace(carry={**start.carry, "loss_scale": loss_scale})
    return trainer.fit(start, trainer.training(task.step, windows), epochs=EPOCHS)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_run_in_small_floats_learns_as_in_float32(platform, windows, precision):
    state, history = train(windows, precision)
    curve = [metrics["train/loss"] for metrics in history]
    assert curve[-1] < 0.5 * curve[0]
    _, reference = train(windows, "float32")
    np.testing.assert_allclose(curve, [metrics["train/loss"] for metrics in reference], rtol=0.05)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.params)} == {"float32"}
    assert int(state.step) == EPOCHS * 8


def test_the_scale_falls_until_gradients_are_finite(platform, windows):
    state, history = train(windows, "float16", scale=2.0**24)
    scales = [metrics["train/loss_scale"] for metrics in history]
    assert scales[-1] < 2.0**24
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    assert history[-1]["train/loss"] < history[0]["train/loss"]
    assert all(np.isfinite(metrics["train/loss"]) for metrics in history)
