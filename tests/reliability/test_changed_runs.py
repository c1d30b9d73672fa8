"""Runs that resume with other hooks, models, batches, devices and versions than they began with."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hooks
import models
import trainer
from trainer import Checkpoints, data, fingerprint, losses
from trainer.checkpoints import manifest

EPOCHS = 4


@pytest.fixture(autouse=True)
def _notices(caplog):
    caplog.set_level(logging.INFO, "entracte")


@pytest.fixture
def chain():
    """Hooks with hook state, independent of their order."""
    count = hooks.stateful("count", lambda state: 0, lambda n, s, m: (n + 1, s))
    return [hooks.average_params(0.5), hooks.stop_early("train/loss", patience=50), count]


def fit(start, phase, directory, *others, epochs=EPOCHS, **settings):
    saving = hooks.save_checkpoints(directory, keep=9, max_cost=None, **settings)
    return trainer.fit(start, phase, epochs=epochs, hooks=[*others, saving])


def rewrite(directory, epoch, **changes):
    """Change a manifest and its checksum; None leaves a field out."""
    file = directory / "checkpoints" / str(epoch) / "manifest.json"
    content = manifest.decode_manifest(file.read_bytes()) | changes
    kept = {name: value for name, value in content.items() if value is not None or name == "config"}
    file.write_bytes(manifest.encode_manifest(kept))


# Hooks


def test_an_added_hook_starts_fresh_and_a_removed_one_is_dropped(
    start, train, chain, tmp_path, caplog
):
    average, patience, count = chain
    straight, _ = trainer.fit(start, train, epochs=EPOCHS)
    fit(start, train, tmp_path, average, patience, epochs=2)
    state, history = fit(start, train, tmp_path, patience, count)
    assert len(history) == EPOCHS - 2
    assert sorted(state.hook_state) == ["count", "stop_early/train/loss"]
    assert state.hook_state["count"] == EPOCHS - 2
    assert "checkpoint 2 in " in caplog.text
    assert "hook_state/count starts fresh" in caplog.text
    assert "hook_state/average_params is dropped, since no hook keeps it" in caplog.text
    assert "stop_early/train/loss begins" not in caplog.text
    assert fingerprint(state.replace(hook_state={})) == fingerprint(straight)


@pytest.mark.parametrize("order", [(2, 0, 1), (2, 1, 0)])
def test_hooks_in_another_order_decide_the_same(start, train, chain, tmp_path, caplog, order):
    straight, _ = trainer.fit(start, train, epochs=EPOCHS, hooks=chain)
    fit(start, train, tmp_path, *chain, epochs=2)
    state, _ = fit(start, train, tmp_path, *(chain[n] for n in order))
    assert fingerprint(state) == fingerprint(straight)
    assert "anew" not in caplog.text


# Models and optimizers


def mlp(train, *, width=16, optimizer=None):
    network = models.mlp(classes=10, hidden=(width,))
    task = trainer.supervised(network, losses.classification, optimizer or optax.adam(1e-2))
    return task.init(jax.random.key(0), train.example), trainer.training(task.step, train)


CHANGES = {
    "an optimizer": (
        {"optimizer": optax.sgd(1e-2)},
        ["opt_state/0/count: saved int32[], wanted nothing", "opt_state/0/mu/"],
    ),
    "a grown layer": (
        {"width": 32},
        ["saved float32[64, 16], wanted float32[64, 32]", "saved float32[16], wanted float32[32]"],
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_does_not_fit_is_listed_before_any_training(digits, tmp_path, change):
    settings, lines = CHANGES[change]
    fit(*mlp(digits[0]), tmp_path, epochs=1)
    seen = []
    look = hooks.observe(lambda state, metrics: seen.append(state) or state)
    with pytest.raises(ValueError, match="checkpoint 1 in .* does not fit this run") as error:
        fit(*mlp(digits[0], **settings), tmp_path, hooks.on("train", look), look)
    for line in lines:
        assert line in str(error.value)
    assert "step: " not in str(error.value)
    assert seen == []
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.epochs() == [1]


# Data


def test_another_batch_size_is_accepted_unless_the_config_says_otherwise(
    start, task, train, digits, tmp_path
):
    def with_batches_of(size, directory, **settings):
        phase = trainer.training(task.step, data.Arrays(digits[0].arrays, size))
        return fit(start, phase, directory, **settings)

    fit(start, train, tmp_path / "free", epochs=2)
    state, history = with_batches_of(50, tmp_path / "free")
    assert len(history) == 2
    assert int(state.step) == 2 * 6 + 2 * 4
    bound = tmp_path / "bound"
    fit(start, train, bound, epochs=2, config={"batch_size": 32, "epochs": 2})
    with pytest.raises(ValueError, match="batch_size: saved 32, now 50"):
        with_batches_of(50, bound, config={"batch_size": 50, "epochs": EPOCHS})
    state, _ = fit(start, train, bound, config={"batch_size": 32, "epochs": EPOCHS})
    assert int(state.epoch) == EPOCHS


# Devices

PHASE = """
import jax, jax.numpy as jnp
import trainer

def step(state, data):
    noise = jax.random.normal(state.key("noise"), state.params["w"].shape)
    params = {"w": state.params["w"] * 0.99 + noise, "scale": state.params["scale"] * 1.5}
    return state.replace(step=state.step + 1, params=params), None, {"loss": jnp.abs(noise).mean()}

phase = trainer.Phase("train", step)

def begin():
    params = {"w": jnp.zeros((16, 4)), "scale": jnp.ones(3)}
    return trainer.TrainState.create(params=params, rng=jax.random.key(0))
"""

CHILD = (
    PHASE
    + """
import sys
import hooks
from jax.sharding import Mesh, NamedSharding, PartitionSpec

assert jax.device_count() == 4
mesh = Mesh(jax.devices(), ("data",))
everywhere, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ([], ["data"]))
state = jax.device_put(begin(), everywhere)
if sys.argv[2] == "sharded":
    w = jax.device_put(state.params["w"], split)
    state = state.replace(params={**state.params, "w": w})
saving = hooks.save_checkpoints(sys.argv[1], max_cost=None)
state, history = trainer.fit(state, phase, epochs=4, hooks=[hooks.average_params(0.5), saving])
print("epochs", len(history), len(state.params["w"].sharding.device_set))
"""
)


@pytest.mark.parametrize("kind", ["replicated", pytest.param("sharded", marks=pytest.mark.soak)])
def test_from_one_device_to_four_and_back(tmp_path, caplog, kind):
    here = {}
    exec(PHASE, here)
    start, phase, average = here["begin"](), here["phase"], hooks.average_params(0.5)
    straight, _ = trainer.fit(start, phase, epochs=6, hooks=average)
    fit(start, phase, tmp_path, average, epochs=2)
    flags = "--xla_force_host_platform_device_count=4"
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path), kind],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    assert "checkpoint 2 in " in child.stderr
    assert f"devices: saved with {jax.device_count()} cpu, now 4 cpu" in child.stderr
    assert child.stdout == "epochs 2 4\n"
    caplog.clear()
    state, history = fit(start, phase, tmp_path, average, epochs=6)
    assert len(history) == 2
    assert f"devices: saved with 4 cpu, now {jax.device_count()} cpu" in caplog.text
    for got, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(straight), strict=True):
        if jnp.issubdtype(jnp.asarray(got).dtype, jax.dtypes.prng_key):
            got, wanted = jax.random.key_data(got), jax.random.key_data(wanted)
        np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-6)


# Versions


def test_another_version_is_logged_and_the_saved_bits_are_restored(
    start, train, chain, tmp_path, caplog
):
    straight, _ = trainer.fit(start, train, epochs=EPOCHS, hooks=chain)
    fit(start, train, tmp_path, *chain, epochs=2)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        versions = checkpoints.manifest(2)["versions"]
    rewrite(tmp_path, 2, versions=versions | {"jaxlib": "0.0.1"}, devices="8 abacus")
    state, _ = fit(start, train, tmp_path, *chain)
    (reported,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "checkpoint 2 in " in reported
    assert "do not expect the same bits as without a stop" in reported
    assert f"jaxlib: saved with 0.0.1, now {versions['jaxlib']}" in reported
    assert f"devices: saved with 8 abacus, now {jax.device_count()} cpu" in reported
    assert "jax: " not in reported
    assert fingerprint(state) == fingerprint(straight)


def test_a_checkpoint_without_recorded_devices_is_read(start, train, tmp_path, caplog):
    straight, _ = trainer.fit(start, train, epochs=EPOCHS)
    fit(start, train, tmp_path, epochs=2)
    rewrite(tmp_path, 2, versions={"python": "3.11.7"}, devices=None)
    state, history = fit(start, train, tmp_path)
    assert len(history) == EPOCHS - 2
    assert fingerprint(state) == fingerprint(straight)
    assert "not to be expected" not in caplog.text


def test_a_newer_format_is_an_error_and_no_older_checkpoint_is_restored(start, train, tmp_path):
    fit(start, train, tmp_path, epochs=2)
    rewrite(tmp_path, 2, format=99, leaves=3)
    with pytest.raises(ValueError, match=rf"is of format 99, and .* up to {manifest.FORMAT}"):
        fit(start, train, tmp_path)
