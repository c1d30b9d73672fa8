"""Recalibration of batch statistics."""

import logging
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen

import hooks
import models
import trainer
from hooks import testing
from trainer import data, losses

pytestmark = pytest.mark.usefixtures("compiled_quickly")


class Normalised(linen.Module):
    """A layer, batch normalisation that keeps 0.99 of its statistics, a layer."""

    @linen.compact
    def __call__(self, x, train):
        x = linen.Dense(4)(x.reshape(len(x), -1))
        x = linen.BatchNorm(use_running_average=not train, momentum=0.99)(x)
        return linen.Dense(10)(linen.relu(x))


@pytest.fixture(scope="module")
def normalised(digits):
    """A task with batch statistics, its state, its phase, and its evaluation and recalibration."""
    network = models.from_linen(Normalised())
    task = trainer.supervised(network, losses.classification, optax.sgd(0.5), average=0.9)
    state = task.init(jax.random.key(0), digits[0].example)
    phase = trainer.training(task.step, digits[0])
    val = trainer.evaluation(task.measure, digits[1])
    return task, state, phase, val, trainer.recalibration(task, digits[0])


def test_the_statistics_are_the_means_over_all_batches(normalised, digits):
    """In one pass, although a step keeps 0.99 of what was before."""
    _, state, phase, _, recalibration = normalised
    trained, _ = trainer.fit(state, phase, epochs=2)
    averaged = trained.replace(params=jax.tree.map(lambda w: 0.7 * w, trained.params))
    found = trainer.recalibrate_batch_stats(averaged, recalibration)
    every = data.Arrays(digits[0].arrays, batch_size=200)
    whole = trainer.recalibrate_batch_stats(averaged, trainer.recalibration(normalised[0], every))
    layer = jax.device_get(averaged.params["Dense_0"])
    rows = np.asarray(digits[0].arrays["inputs"]).reshape(200, -1) @ layer["kernel"] + layer["bias"]
    exact = whole.model_state["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(exact["mean"], rows.mean(0), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(exact["var"], rows.var(0), rtol=1e-3, atol=1e-4)
    by_batch = found.model_state["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(by_batch["mean"], rows.mean(0), rtol=0.2, atol=0.05)
    assert found.params is averaged.params
    assert int(found.step) == int(averaged.step)
    assert averaged.model_state is trained.model_state


def test_state_that_is_no_average_stays_as_the_network_returns_it(digits):
    def apply(params, model_state, x, *, key, train):
        after = {"calls": model_state["calls"] + 1, "last": x.mean(), "fixed": model_state["fixed"]}
        return x.reshape(len(x), -1)[:, :10], after if train else model_state

    first = {"calls": jnp.int32(0), "last": jnp.float32(0), "fixed": jnp.float32(7)}
    network = SimpleNamespace(init=lambda key, x: ({}, first), apply=apply)
    task = trainer.supervised(network, losses.classification, optax.sgd(0.1))
    state = task.init(jax.random.key(0), digits[0].example)
    after = trainer.recalibrate_batch_stats(
        state, trainer.recalibration(task, digits[0])
    ).model_state
    assert int(after["calls"]) == 6
    rows = np.asarray(digits[0].arrays["inputs"])
    assert float(after["last"]) == pytest.approx(rows.mean(), rel=0.05)
    assert float(after["fixed"]) == 7.0


@pytest.mark.parametrize("params", ["swa", "average"])
def test_an_average_with_recalibrated_statistics_is_measured_and_restored(
    normalised, params, digits
):
    _, state, phase, val, recalibration = normalised
    name = f"recalibrate/{params}"
    chain = [
        hooks.swa(start=1) if params == "swa" else (),
        hooks.recalibrate(recalibration, params=params),
        hooks.evaluate(val, params=name),
        hooks.keep_best("val/loss", params=name),
    ]
    best, history = trainer.fit(state, phase, epochs=3, hooks=chain)
    assert len(recalibration._shared.compiled) == 1
    losses_seen = [epoch["val/loss"] for epoch in history]
    assert trainer.evaluate(best, val)["val/loss"] == pytest.approx(min(losses_seen), rel=1e-5)
    last = best.replace(**best.hook_state[name])
    assert trainer.evaluate(last, val)["val/loss"] == pytest.approx(losses_seen[-1], rel=1e-5)
    by_hand = (
        best.hook_state["swa"]["params"] if params == "swa" else best.carry["average"]["params"]
    )
    again = trainer.recalibrate_batch_stats(best.replace(params=by_hand), recalibration)
    measured = trainer.evaluate(again, val)["val/loss"]
    assert measured == pytest.approx(losses_seen[-1], rel=0.02)
    trained, _ = trainer.fit(state, phase, epochs=3)
    stale = trainer.evaluate(trained.replace(params=by_hand), val)["val/loss"]
    assert abs(stale - measured) > 0.05  # what the trained parameters' statistics give


@pytest.mark.parametrize("hook", ["swa", "average_params", "evaluate", "keep_best"])
def test_an_average_without_recalibration_is_warned_of_once(normalised, hook, caplog):
    _, state, phase, val, recalibration = normalised
    made = {
        "swa": lambda: hooks.swa(start=1),
        "average_params": lambda: hooks.average_params(),
        "evaluate": lambda: hooks.evaluate(val, params="average"),
        "keep_best": lambda: hooks.keep_best("train/loss", params="average"),
    }[hook]
    name = hook if hook in ("swa", "average_params") else "average"
    for others, expected in (((), 1), ([hooks.recalibrate(recalibration, params=name)], 0)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "entracte"):
            chain = [made(), *others] if name == hook else [*others, made()]
            trainer.fit(state, phase, epochs=2, hooks=chain)
        told = [r for r in caplog.records if "do not suit it: place hooks.recalibrate" in r.message]
        assert len(told) == expected
        read = [r for r in caplog.records if "say params='recalibrate/average'" in r.message]
        assert len(read) == (bool(others) and name == "average")


def test_a_network_without_statistics_causes_no_warning(start, train, caplog):
    trainer.fit(start, train, epochs=1, hooks=[hooks.swa(start=1), hooks.average_params()])
    assert not [r for r in caplog.records if "recalibrate" in r.message]


def test_numbers_in_the_model_state_that_training_leaves_are_no_statistics(start, train, caplog):
    frozen = start.replace(model_state={"base": jnp.ones(3)})
    trainer.fit(frozen, train, epochs=2, hooks=[hooks.swa(start=1), hooks.average_params()])
    assert not [r for r in caplog.records if "recalibrate" in r.message]


def test_recalibration_resumes_and_keeps_the_laws(normalised, tmp_path):
    _, state, phase, _, recalibration = normalised
    make = lambda: [hooks.swa(start=1), hooks.recalibrate(recalibration, params="swa")]  # noqa: E731
    whole, _ = trainer.fit(state, phase, epochs=2, hooks=make())
    for epochs in (1, 2):
        chain = [make(), hooks.save_checkpoints(tmp_path, max_cost=None)]
        resumed, _ = trainer.fit(state, phase, epochs=epochs, hooks=chain)
    assert trainer.fingerprint(resumed) == trainer.fingerprint(whole)
    testing.check_hook(hooks.recalibrate(recalibration, params="average"), state, {})


def test_a_phase_that_is_no_recalibration_is_an_error(normalised, digits):
    _, state, phase, val, recalibration = normalised
    with pytest.raises(
        TypeError, match=r"recalibrate takes a phase made by trainer\.recalibration"
    ):
        hooks.recalibrate(val, params="swa")
    with pytest.raises(ValueError, match="needs the hook state of 'swa', which is not in the"):
        trainer.fit(state, phase, epochs=1, hooks=hooks.recalibrate(recalibration, params="swa"))
