"""Gradients by micro-batches, and their norm."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hooks
import trainer
from trainer import data, losses
from trainer.phases.jaxprs import has_convolution
from trainer.state import strip_host_fields
from trainer.supervised import gradients

pytestmark = pytest.mark.usefixtures("compiled_quickly")


def _after(network, loss, batch, *, steps=10, **settings):
    """Ten steps of Adam on one batch; the parameters, and the last metrics."""
    task = trainer.supervised(network, loss, optax.adam(1e-2), **settings)
    state = strip_host_fields(task.init(jax.random.key(0), batch))
    step = jax.jit(task.step)
    for _ in range(steps):
        state, metrics = step(state, batch)
    return state, metrics


def _weighted(outputs, batch):
    values = losses.classification(outputs, batch)
    return {**values, "loss": (values["loss"], batch["labels"].astype(jnp.float32))}


@pytest.mark.parametrize("loss", [losses.classification, _weighted])
@pytest.mark.parametrize("count", [2, 8])
def test_accumulated_gradients_equal_those_of_the_whole_batch(linear, digits, loss, count):
    whole, wanted = _after(linear, loss, digits[0].example)
    parts, metrics = _after(linear, loss, digits[0].example, accumulate=count)
    np.testing.assert_allclose(parts.params["w"], whole.params["w"], atol=2e-5)
    assert metrics.keys() == wanted.keys()
    for name in wanted:
        assert float(metrics[name]) == pytest.approx(float(wanted[name]), rel=1e-4, abs=1e-6)
    assert int(parts.step) == 10


def test_a_micro_batch_without_weights_changes_nothing(linear, digits):
    def masked(outputs, batch):
        return {"loss": losses.classification(outputs, batch)["loss"]}

    batch = digits[0].example | {"mask": jnp.repeat(jnp.array([1.0, 0.0]), 16)}
    parts, metrics = _after(linear, masked, batch, accumulate=2)
    half = {name: array[:16] for name, array in batch.items()}
    wanted, _ = _after(linear, losses.classification, half)
    np.testing.assert_allclose(parts.params["w"], wanted.params["w"], atol=2e-5)
    assert np.isfinite(float(metrics["loss"]))


def test_the_model_state_passes_through_the_micro_batches(digits):
    def apply(params, model_state, x, *, key, train):
        outputs = x.reshape(len(x), -1) @ params["w"]
        return outputs, {"seen": model_state["seen"] + 1, "key": jax.random.bits(key)}

    def init(key, x):
        return {"w": jnp.zeros((64, 10))}, {"seen": jnp.int32(0), "key": jnp.uint32(0)}

    network = SimpleNamespace(init=init, apply=apply)
    with jax.debug_key_reuse(True):  # each micro-batch has a key of its own, used once
        state, _ = _after(network, losses.classification, digits[0].example, steps=1, accumulate=4)
    assert int(state.model_state["seen"]) == 4
    other, _ = _after(network, losses.classification, digits[0].example, steps=1)
    assert int(state.model_state["key"]) != int(other.model_state["key"])


def test_a_count_that_does_not_divide_the_batch_is_an_error_before_training(linear, digits):
    task = trainer.supervised(linear, losses.classification, optax.sgd(0.1), accumulate=5)
    state = task.init(jax.random.key(0), digits[0].example)
    with pytest.raises(ValueError, match="32 examples do not make 5 micro-batches of equal size"):
        trainer.fit(state, trainer.training(task.step, digits[0]), epochs=1)
    with pytest.raises(ValueError, match="accumulate must be a whole number of at least 1; got 0"):
        trainer.supervised(linear, losses.classification, optax.sgd(0.1), accumulate=0)


def test_on_cpu_a_convolution_is_not_computed_in_a_loop(digits):
    def apply(params, model_state, x, *, key, train):
        form = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, params["w"], (1, 1), "SAME", dimension_numbers=form)
        return x.mean((1, 2)), model_state

    network = SimpleNamespace(
        init=lambda key, x: ({"w": jnp.ones((3, 3, 1, 10)) / 9}, {}), apply=apply
    )
    task = trainer.supervised(network, losses.classification, optax.sgd(0.1), accumulate=2)
    state = strip_host_fields(task.init(jax.random.key(0), digits[0].example))
    jaxpr = jax.make_jaxpr(task.step)(state, digits[0].example)
    assert has_convolution(jaxpr)
    scans = [e for e in jaxpr.jaxpr.eqns if e.primitive.name == "scan"]
    assert [e.params["unroll"] for e in scans] == [2]


@pytest.mark.parametrize(("limit", "clipped"), [(1e-3, 1.0), (1e3, 0.0)])
def test_clipping_scales_to_the_norm_and_reports_how_often(linear, digits, limit, clipped):
    task = trainer.supervised(linear, losses.classification, optax.sgd(1.0), clip_norm=limit)
    start = task.init(jax.random.key(0), digits[0].example)
    state, metrics = jax.jit(task.step)(strip_host_fields(start), digits[0].example)
    assert float(metrics["clipped"]) == clipped
    moved = optax.tree.norm(optax.tree.sub(start.params, state.params))
    assert float(moved) == pytest.approx(min(limit, float(metrics["grad_norm"])), rel=1e-4)
    with pytest.raises(ValueError, match="clip_norm must be above 0"):
        trainer.supervised(linear, losses.classification, optax.sgd(1.0), clip_norm=0.0)


def test_augmentation_changes_only_training_and_differs_at_every_step(linear, digits):
    def black(key, batch):
        keep = jax.random.bernoulli(key, 0.5, (len(batch["labels"]), 1, 1, 1))
        return batch | {"inputs": batch["inputs"] * keep}

    batch = digits[0].example
    task = trainer.supervised(linear, losses.classification, optax.sgd(0.0), augment=black)
    plain = trainer.supervised(linear, losses.classification, optax.sgd(0.0))
    state = task.init(jax.random.key(0), batch)
    first, one = task.step(state, batch)
    _, two = task.step(first, batch)
    _, unchanged = plain.step(state, batch)
    assert len({float(m["loss"]) for m in (one, two, unchanged)}) == 3
    np.testing.assert_array_equal(
        task.measure(state, batch)["loss"], plain.measure(state, batch)["loss"]
    )
    state, _ = trainer.fit(state, trainer.training(task.step, digits[0]), epochs=1)
    again, _ = trainer.fit(
        task.init(jax.random.key(0), batch), trainer.training(task.step, digits[0]), epochs=1
    )
    assert trainer.fingerprint(state) == trainer.fingerprint(again)


def test_a_task_computes_its_gradients(linear, digits):
    for name in ("float32", "float16"):
        task = trainer.supervised(
            linear, losses.classification, optax.sgd(0.1), precision=name, clip_norm=1e-3
        )
        state = task.init(jax.random.key(0), digits[0].example)
        grads, means = task.gradients(state, digits[0].example)
        _, metrics = task.step(state, digits[0].example)
        assert float(gradients.global_norm(grads)) == pytest.approx(
            float(metrics["grad_norm"]), rel=1e-3
        )
        assert float(means["loss"]) == pytest.approx(float(metrics["loss"]))


def test_the_norm_is_over_all_leaves():
    tree = {"small": jnp.full(3, 2.0), "large": jnp.full(gradients.SMALL, 0.5)}
    wanted = np.sqrt(3 * 4 + gradients.SMALL * 0.25)
    assert float(gradients.global_norm(tree)) == pytest.approx(wanted, rel=1e-6)


def test_finalized_values_are_metrics_of_training_and_evaluation():
    tokens = np.random.default_rng(0).integers(0, 5, (64, 8)).astype(np.int32)
    arrays = {"inputs": tokens[:, :-1], "labels": tokens[:, 1:]}
    network = SimpleNamespace(
        init=lambda key, x: ({"w": jnp.zeros((5, 5))}, {}),
        apply=lambda params, model_state, x, *, key, train: (params["w"][x], model_state),
    )
    task = trainer.supervised(network, losses.language_modeling, optax.sgd(0.0))
    train = trainer.training(task.step, data.Arrays(arrays, 16))
    val = trainer.evaluation(task.measure, data.Arrays(arrays, 12))
    state = task.init(jax.random.key(0), train.source.example)
    assert {"val/perplexity", "val/bits_per_character"} <= set(val.list_metric_names(state))

    def look(state, metrics):
        assert metrics["train/perplexity"] == pytest.approx(5, rel=1e-5)
        return state

    _, history = trainer.fit(
        state, train, epochs=1, hooks=[hooks.evaluate(val), hooks.reads("train/perplexity")(look)]
    )
    assert history[0]["val/perplexity"] == pytest.approx(5, rel=1e-5)
    assert history[0]["val/bits_per_character"] == pytest.approx(np.log2(5), rel=1e-5)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_parameters_in_lower_precision_keep_their_dtype(digits, precision):
    network = SimpleNamespace(
        init=lambda key, x: ({"w": jnp.zeros((64, 10), jnp.bfloat16)}, {}),
        apply=lambda params, model_state, x, *, key, train: (
            x.reshape(len(x), -1) @ params["w"],
            model_state,
        ),
    )
    settings = {"accumulate": 2, "precision": precision}
    state, _ = _after(network, losses.classification, digits[0].example, steps=2, **settings)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.params)} == {"bfloat16"}
