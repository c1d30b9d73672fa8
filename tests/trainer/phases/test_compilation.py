"""Debug modes of JAX, in which training calls jitted functions, and the compilation cache."""

import contextlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hooks
import trainer
from trainer import data
from trainer.phases.compilation import read_jax_settings

CHILD = """
import sys
import jax, jax.monitoring, jax.numpy as jnp
import trainer
hits = []
jax.monitoring.register_event_listener(
    lambda name, **_: hits.append(name) if name == "/jax/compilation_cache/cache_hits" else None
)
trainer.cache_compilations(sys.argv[1])
def shrink(state, data):
    return state.replace(params=state.params * 0.5), None, {"size": state.params}
state = trainer.TrainState.create(params=jnp.float32(1), rng=jax.random.key(0))
trainer.fit(state, trainer.Phase("shrink", shrink), epochs=1)
print(len(hits))
"""

SOURCE = data.Arrays({"inputs": np.ones((6, 1), np.float32)}, batch_size=2)


def _step(state, batch):
    low = state.params - batch["inputs"].mean()
    return state.replace(params=low, step=state.step + 1), {"loss": jnp.log(low)}


def _measure(state, batch):
    return {"loss": jnp.log(batch["inputs"][:, 0] - state.params)}


def _begun(params=10.0):
    return trainer.TrainState.create(params=jnp.float32(params), rng=jax.random.key(0))


@pytest.mark.parametrize("executor", ["scan", "step"])
def test_under_debug_nans_the_operation_is_named(executor):
    phase = trainer.training(_step, SOURCE, executor=executor)
    trainer.fit(_begun(), phase, epochs=1)  # compiled before, not inspected
    with jax.debug_nans(True), pytest.raises(FloatingPointError, match="encountered in log"):
        trainer.fit(_begun(), phase, epochs=4)


@pytest.mark.parametrize(
    "name", ["jax_disable_most_optimizations", "jax_debug_infs", "jax_enable_x64"]
)
def test_a_changed_setting_of_jax_is_noticed(name):
    before, was = read_jax_settings(), jax.config.values[name]
    jax.config.update(name, not was)
    try:
        assert read_jax_settings() != before
    finally:
        jax.config.update(name, was)
    assert read_jax_settings() == before


def test_debug_nans_of_the_configuration_hold_after_a_context_has_ended():
    """JAX itself then inspects only the first call of a function, and the first step is finite."""
    phase = trainer.training(_step, SOURCE, executor="scan")
    jax.config.update("jax_debug_nans", True)
    try:
        with jax.debug_nans(False):
            pass
        with pytest.raises(FloatingPointError, match="encountered in log"):
            trainer.fit(_begun(), phase, epochs=4)
    finally:
        jax.config.update("jax_debug_nans", False)


def test_under_debug_nans_hand_written_phases_and_evaluations_are_inspected():
    def run(state, piece):
        return state, None, {"loss": jnp.log(state.params)}

    val = trainer.evaluation(_measure, SOURCE)
    assert np.isnan(trainer.evaluate(_begun(), val)["val/loss"])
    with jax.debug_nans(True):
        for measure in (
            lambda: trainer.evaluate(_begun(), val),
            lambda: trainer.fit(_begun(-1), trainer.Phase("train", run), epochs=1),
        ):
            with pytest.raises(FloatingPointError, match="encountered in log"):
                measure()


@pytest.mark.usefixtures("compiled_quickly")
@pytest.mark.parametrize("looking", [jax.disable_jit, lambda: jax.debug_nans(True)])
def test_debug_modes_give_the_same_result(looking, task, digits, start):
    few = data.Arrays({k: np.asarray(v)[:8] for k, v in digits[0].arrays.items()}, 8)
    found = []
    for context in (contextlib.nullcontext, looking):
        train, val = trainer.training(task.step, few), trainer.evaluation(task.measure, few)
        with context():
            state, history = trainer.fit(
                start, train, epochs=1, hooks=hooks.evaluate(val), dry_run=True
            )
            found.append((state.params, history[0]["val/loss"], trainer.evaluate(state, val)))
    (params, loss, scores), (others, other, again) = found
    assert optax.tree.norm(jax.tree.map(jnp.subtract, params, others)) < 1e-6
    assert [loss, *scores.values()] == pytest.approx([other, *again.values()], rel=1e-5)


def _count_hits(folder):
    """Train in a process of its own; return how many programs it found in the cache."""
    command = [sys.executable, "-c", CHILD, str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return int(run.stdout)


def test_a_second_process_uses_the_cache_of_the_first(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    hits = [_count_hits(tmp_path / "cache") for _ in range(2)]
    assert hits[0] == 0
    assert hits[1] > 0
    assert any((tmp_path / "cache").iterdir())


def test_the_folder_that_the_environment_names_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "named"))
    assert _count_hits(tmp_path / "cache") == 0
    assert any((tmp_path / "named").iterdir())
    assert not (tmp_path / "cache").exists()
