"""Overfitting on purpose distinguishes a model that learns from one that cannot."""

from __future__ import annotations

from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import trainer
from trainer import losses


@pytest.fixture(scope="module")
def batch(digits):
    return jax.tree.map(lambda array: array[:8], digits[0].example)


@pytest.fixture(scope="module")
def result(task, batch):
    return trainer.overfit(task, batch)


def test_a_model_that_learns_reaches_the_target(result, task, batch):
    assert result.reached
    assert result.losses.shape == (result.steps,)
    assert result.losses.dtype == np.float32
    assert result.losses[-1] <= 0.01 < result.losses[:-1].min()
    assert int(result.state.step) == result.steps < 500
    assert float(task.measure(result.state, batch)["loss"].mean()) <= 0.011


def test_both_executors_give_the_same_bits(result, task, batch):
    by_step = trainer.overfit(task, batch, executor="step")
    assert (by_step.reached, by_step.steps) == (True, result.steps)
    chex.assert_trees_all_equal(by_step.losses, result.losses)
    assert trainer.fingerprint(by_step.state) == trainer.fingerprint(result.state)


def test_the_losses_equal_those_of_single_steps(result, task, batch):
    state, step = task.init(jax.random.key(0), batch), jax.jit(task.step)
    for loss in result.losses[:5]:
        state, metrics = step(state, batch)
        assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-5)


def test_a_model_that_ignores_its_inputs_does_not_reach_it(batch, linear):
    blind = SimpleNamespace(
        init=linear.init,
        apply=lambda params, model_state, x, **rest: linear.apply(
            params, model_state, 0 * x, **rest
        ),
    )
    task = trainer.supervised(blind, losses.classification, optax.adam(1e-2))
    result = trainer.overfit(task, batch, steps=60)
    assert (result.reached, result.steps) == (False, 60)
    assert repr(result).startswith("OverfitResult(reached=False, steps=60, loss 2.3")


@pytest.mark.parametrize("executor", ["scan", "step"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_ends_it(batch, executor, bad):
    def step(state, batch):
        loss = jnp.where(state.step == 3, bad, 1.0)
        return state.replace(step=state.step + 1), {"loss": loss}

    def init(key, batch):
        return trainer.TrainState.create(params=jnp.zeros(2), rng=key)

    result = trainer.overfit(SimpleNamespace(init=init, step=step), batch, executor=executor)
    assert (result.reached, result.steps, int(result.state.step)) == (False, 4, 4)
    np.testing.assert_array_equal(result.losses, np.float32([1, 1, 1, bad]))


def test_a_convolution_runs_one_dispatch_per_step_on_cpu(batch, monkeypatch):
    from trainer.supervised import overfitting

    def init(key, x):
        return {"k": jax.random.normal(key, (3, 3, 1, 2)) * 0.1, "w": jnp.zeros((128, 10))}, {}

    def apply(params, model_state, x, *, key, train):
        images = x.reshape(len(x), 8, 8, 1)
        numbers = ("NHWC", "HWIO", "NHWC")
        seen = jax.lax.conv_general_dilated(
            images, params["k"], (1, 1), "SAME", dimension_numbers=numbers
        )
        return jax.nn.relu(seen).reshape(len(x), -1) @ params["w"], model_state

    network = SimpleNamespace(init=init, apply=apply)
    task = trainer.supervised(network, losses.classification, optax.adam(1e-2))
    monkeypatch.setattr(overfitting, "_run_compiled_loop", None)
    assert trainer.overfit(task, batch).reached


def test_key_target_and_labels_are_respected(task, batch, result):
    other = trainer.overfit(task, batch, key=jax.random.key(1), target=1.0)
    assert other.reached
    assert other.steps < result.steps
    assert other.losses[0] != result.losses[0]
    wrong = {**batch, "labels": batch["labels"].at[0].set(99)}
    with pytest.raises(ValueError, match="labels must be between 0 and 9"):
        trainer.overfit(task, wrong)
    with pytest.raises(ValueError, match="steps must be a whole number of at least 1"):
        trainer.overfit(task, batch, steps=0)
    with pytest.raises(ValueError, match="executor must be"):
        trainer.overfit(task, batch, executor="fast")
