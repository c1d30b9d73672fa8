"""The precision of a step, and the loss scale."""

from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import trainer
from trainer import losses
from trainer.supervised import precision
from trainer.supervised.precision import (
    GROWTH_INTERVAL,
    INITIAL_LOSS_SCALE,
    init_loss_scale,
    update_loss_scale,
)

pytestmark = pytest.mark.usefixtures("compiled_quickly")


def test_the_scale_halves_after_an_overflow_and_doubles_after_many_finite_steps():
    scale = update_loss_scale(init_loss_scale(), jnp.array(False))
    assert float(scale["scale"]) == INITIAL_LOSS_SCALE / 2
    scale["finite_steps"] = jnp.int32(GROWTH_INTERVAL - 1)
    scale = update_loss_scale(scale, jnp.array(True))
    assert (float(scale["scale"]), int(scale["finite_steps"])) == (
        INITIAL_LOSS_SCALE,
        0,
    )
    scale = update_loss_scale(scale, jnp.array(True))
    assert (float(scale["scale"]), int(scale["finite_steps"])) == (
        INITIAL_LOSS_SCALE,
        1,
    )


def test_the_scale_stays_in_its_range():
    for finite, at in ((False, 1.0), (True, 2.0**24)):
        scale = {
            "scale": jnp.float32(at),
            "finite_steps": jnp.int32(GROWTH_INTERVAL - 1),
        }
        assert float(update_loss_scale(scale, jnp.array(finite))["scale"]) == at


@pytest.mark.parametrize(
    ("name", "device", "said"),
    [
        ("bfloat16", {"platform": "gpu", "compute_capability": "7.5"}, "7.5: use float16"),
        ("float16", {"platform": "tpu"}, "float16 is not available on a thing; use bfloat16"),
    ],
)
def test_a_precision_that_a_device_lacks_is_an_error(name, device, said):
    with pytest.raises(ValueError, match=said):
        precision.require_available(name, SimpleNamespace(device_kind="a thing", **device))


@pytest.mark.parametrize("capability", ["8.0", "9.0", "12.0", "gfx90a"])
def test_a_newer_gpu_supports_all_precisions(capability):
    device = SimpleNamespace(platform="gpu", compute_capability=capability, device_kind="a thing")
    for name in precision.PRECISIONS:
        precision.require_available(name, device)


def test_an_unknown_precision_is_an_error(linear):
    with pytest.raises(ValueError, match="one of float32, bfloat16, float16; got 'fp8'"):
        trainer.supervised(linear, losses.classification, optax.sgd(1.0), precision="fp8")


@pytest.mark.parametrize("name", precision.PRECISIONS)
def test_the_network_computes_in_the_precision_and_the_rest_stays_float32(name, digits):
    seen = set()

    def apply(params, model_state, x, *, key, train):
        outputs = x.reshape(len(x), -1) @ params["w"]
        seen.update((params["w"].dtype.name, x.dtype.name, outputs.dtype.name))
        mean = 0.9 * model_state["mean"] + 0.1 * outputs.mean(0)
        return outputs, {"mean": mean if train else model_state["mean"]}

    network = SimpleNamespace(
        init=lambda key, x: ({"w": jnp.zeros((64, 10))}, {"mean": jnp.zeros(10)}), apply=apply
    )
    task = trainer.supervised(network, losses.classification, optax.adam(1e-2), precision=name)
    start = task.init(jax.random.key(0), digits[0].example)
    state, history = trainer.fit(start, trainer.training(task.step, digits[0]), epochs=3)
    assert seen == {name}
    assert history[-1]["train/loss"] < history[0]["train/loss"]
    assert {leaf.dtype.name for leaf in jax.tree.leaves((state.params, state.model_state))} == {
        "float32"
    }
    assert {v.dtype.name for v in task.measure(state, digits[1].example).values()} == {"float32"}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_frozen_base_is_cast_as_parameters_are_and_batch_statistics_are_not(accumulate):
    def apply(params, model_state, x, *, key, train):
        outputs = x @ (model_state["base"] + params)
        mean = model_state["mean"]
        seen.add((model_state["base"].dtype.name, mean.dtype.name, train))
        mean = 0.9 * mean + 0.1 * outputs.mean(0) if train else mean
        return outputs - mean, {**model_state, "mean": mean}

    seen, (w, base, x) = set(), jax.random.normal(jax.random.key(0), (3, 4, 4))
    rounded = base.astype(jnp.bfloat16).astype(jnp.float32)
    batch = {"inputs": x, "labels": jnp.arange(4)}
    found = {}
    for name, kept in {"given": base, "rounded": rounded}.items():
        network = SimpleNamespace(
            init=lambda key, x, kept=kept: (w, {"base": kept, "mean": jnp.full(4, 1 / 3)}),
            apply=apply,
        )
        task = trainer.supervised(
            *(network, losses.classification, optax.sgd(0.1)),
            precision="bfloat16",
            accumulate=accumulate,
        )
        start = task.init(jax.random.key(0), batch)
        after, _ = jax.jit(task.step)(start, batch)
        np.testing.assert_array_equal(after.model_state["base"], kept)
        found[name] = after.params, after.model_state["mean"], task.outputs(start, batch)
        mean = np.asarray(start.model_state["mean"])
    seen.discard(("float32", "float32", True))  # of the search for what is frozen
    assert seen == {("bfloat16", "float32", True), ("bfloat16", "float32", False)}
    chex.assert_trees_all_equal(*found.values())
    by_hand = x @ (w + base) - mean
    np.testing.assert_allclose(found["given"][2], by_hand, atol=0.05)
    assert float(jnp.abs(found["given"][2] - by_hand).max()) > 1e-4


def test_float16_equals_float32_up_to_its_precision(linear, digits):
    ends = []
    for name in ("float32", "float16"):
        task = trainer.supervised(linear, losses.classification, optax.sgd(0.1), precision=name)
        start = task.init(jax.random.key(0), digits[0].example)
        ends.append(trainer.fit(start, trainer.training(task.step, digits[0]), epochs=2)[0].params)
    np.testing.assert_allclose(ends[1]["w"], ends[0]["w"], atol=2e-3)


def test_an_overflow_skips_the_update_and_halves_the_scale(linear, digits):
    def huge(outputs, batch):
        values = losses.classification(outputs, batch)
        return {"loss": values["loss"] * batch["factor"]}

    optimizer = optax.adam(0.1)
    task = trainer.supervised(linear, huge, optimizer, precision="float16", clip_norm=1.0)
    batch = digits[0].example | {"factor": jnp.full(32, 1e6)}
    start = task.init(jax.random.key(0), batch)
    state, metrics = jax.jit(task.step)(start, batch)
    assert (float(metrics["skipped"]), float(metrics["grad_norm"])) == (1.0, 0.0)
    assert float(metrics["clipped"]) == 0.0
    assert int(state.step) == 1
    np.testing.assert_array_equal(state.params["w"], start.params["w"])
    assert int(optax.tree.get(state.opt_state, "count")) == 0
    assert float(state.carry["loss_scale"]["scale"]) == INITIAL_LOSS_SCALE / 2
    batch["factor"] = jnp.ones(32)
    after, metrics = jax.jit(task.step)(state, batch)
    assert float(metrics["skipped"]) == 0.0
    assert float(metrics["loss_scale"]) == INITIAL_LOSS_SCALE / 2
    assert np.abs(np.asarray(after.params["w"]) - np.asarray(state.params["w"])).max() > 0
