"""The supervised task: init, step, measure."""

import functools
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import trainer
from trainer import data, losses
from trainer.state import strip_host_fields


def _batch(digits):
    return digits[0].example


def test_a_step_is_one_step_of_gradient_descent(linear, digits):
    task = trainer.supervised(linear, losses.classification, optax.sgd(0.5))
    state = task.init(jax.random.key(0), _batch(digits))
    after, metrics = jax.jit(task.step)(strip_host_fields(state), _batch(digits))

    def loss(params):
        outputs, _ = linear.apply(params, {}, _batch(digits)["inputs"], key=None, train=True)
        return losses.classification(outputs, _batch(digits))["loss"].mean()

    value, grads = jax.value_and_grad(loss)(state.params)
    wanted = jax.tree.map(lambda w, g: w - 0.5 * g, state.params, grads)
    chex.assert_trees_all_close(after.params, wanted, rtol=1e-6)
    assert float(metrics["loss"]) == pytest.approx(float(value))
    norm = np.sqrt(sum(float((g**2).sum()) for g in grads.values()))
    assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-5)
    assert sorted(metrics) == ["accuracy", "grad_norm", "loss"]
    assert int(after.step) == 1


def test_a_step_reports_the_learning_rate_if_the_optimizer_keeps_one(linear, digits):
    rate = optax.linear_schedule(1.0, 0.0, 10)
    task = trainer.supervised(
        linear, losses.classification, optax.inject_hyperparams(optax.sgd)(learning_rate=rate)
    )
    state = task.init(jax.random.key(0), _batch(digits))
    for expected in (1.0, 0.9):
        state, metrics = task.step(state, _batch(digits))
        assert float(metrics["learning_rate"]) == pytest.approx(expected)


def test_init_depends_only_on_the_key(task, digits):
    one, same, other = (task.init(jax.random.key(seed), _batch(digits)) for seed in (0, 0, 1))
    assert trainer.fingerprint(one) == trainer.fingerprint(same)
    assert trainer.fingerprint(one) != trainer.fingerprint(other)


def test_the_network_gets_a_new_key_at_every_step_and_keeps_its_state(digits):
    def apply(params, model_state, inputs, *, key, train):
        noise = jax.random.uniform(key, (10,))
        seen = model_state["seen"] + train
        return inputs.reshape(len(inputs), -1) @ params["w"] + noise, {"seen": seen, "noise": noise}

    def init(key, inputs):
        return {"w": jnp.zeros((64, 10))}, {"seen": jnp.zeros((), int), "noise": jnp.zeros(10)}

    network = SimpleNamespace(init=init, apply=apply)
    task = trainer.supervised(network, losses.classification, optax.sgd(0.0))
    state = task.init(jax.random.key(0), _batch(digits))
    first, _ = task.step(state, _batch(digits))
    second, _ = task.step(first, _batch(digits))
    assert int(second.model_state["seen"]) == 2
    assert not np.array_equal(first.model_state["noise"], second.model_state["noise"])
    measured = task.measure(second, _batch(digits))
    chex.assert_shape(measured["loss"], (32,))


def test_weighted_values_are_averaged_by_weight(linear, digits):
    def weighted(outputs, batch):
        values = losses.classification(outputs, batch)
        return {"loss": (values["loss"], batch["labels"].astype(jnp.float32))}

    task = trainer.supervised(linear, weighted, optax.sgd(0.1))
    state = task.init(jax.random.key(0), _batch(digits))
    _, metrics = task.step(state, _batch(digits))
    values = losses.classification(
        linear.apply(state.params, {}, _batch(digits)["inputs"], key=None, train=True)[0],
        _batch(digits),
    )["loss"]
    wanted = np.average(values, weights=_batch(digits)["labels"])
    assert float(metrics["loss"]) == pytest.approx(float(wanted), rel=1e-5)


def test_a_loss_that_returns_no_loss_is_an_error(linear, digits):
    task = trainer.supervised(linear, lambda outputs, batch: {"error": outputs[:, 0]}, optax.sgd(1))
    state = task.init(jax.random.key(0), _batch(digits))
    with pytest.raises(
        ValueError, match=r"must return 'loss' to minimise; it returned \['error'\]"
    ):
        trainer.fit(state, trainer.training(task.step, digits[0]), epochs=1)


def test_a_network_that_does_not_fit_the_loss_is_an_error_before_training(linear, digits):
    flat = linear.__class__(
        init=linear.init,
        apply=lambda *args, **keywords: (linear.apply(*args, **keywords)[0].sum(-1), {}),
    )
    task = trainer.supervised(flat, losses.classification, optax.sgd(1))
    state = task.init(jax.random.key(0), _batch(digits))
    with pytest.raises(ValueError, match=r"classification needs logits \[batch, classes\]"):
        trainer.fit(state, trainer.training(task.step, digits[0]), epochs=1)


def test_a_batch_without_inputs_is_an_error(task):
    with pytest.raises(ValueError, match=r"a batch needs 'inputs' for the network; got \['x'\]"):
        task.init(jax.random.key(0), {"x": jnp.zeros(3)})


def test_a_partial_loss_still_checks_labels(linear, digits):
    smooth = functools.partial(losses.classification, label_smoothing=0.1)
    task = trainer.supervised(linear, smooth, optax.sgd(0.1))
    arrays = {name: np.array(array) for name, array in digits[0].arrays.items()}
    arrays["labels"][0] = -1
    bad = data.Arrays(arrays, 32)
    state = task.init(jax.random.key(0), bad.example)
    with pytest.raises(ValueError, match="got labels between -1 and 9"):
        trainer.fit(state, trainer.training(task.step, bad), epochs=1)
