"""What a run compiles before its first epoch."""

import logging
import threading

import jax
import numpy as np
import optax
import pytest

import hooks
import trainer
from trainer import data, losses
from trainer.host.computed_once import ComputedOnce
from trainer.phases import compilation
from trainer.phases.compilation import compile_side_by_side


@pytest.fixture
def arrays():
    """Examples of a shape that no other test uses."""
    return {"inputs": np.ones((22, 17), np.float32), "labels": np.arange(22) % 10}


def test_a_start_compiles_the_functions_of_the_task_and_no_copies(
    arrays, linear, state, phase, counting_compilations
):
    trainer.fit(state, phase, epochs=1)  # counting epochs compiles once in a process
    key = jax.random.key(0)
    task = trainer.supervised(linear, losses.classification, optax.adam(1e-2))
    with counting_compilations() as of_data:
        source = data.Arrays(arrays, batch_size=11)
    with counting_compilations() as of_init:
        start = task.init(key, source.example)
    with counting_compilations() as of_fit:
        trainer.fit(start, trainer.training(task.step, source), epochs=1)
    assert (len(of_data), len(of_init), len(of_fit)) == (0, 2, 1)


def test_what_hooks_evaluate_is_compiled_before_the_first_epoch(arrays, linear, caplog):
    caplog.set_level(logging.INFO, "entracte")
    task = trainer.supervised(linear, losses.classification, optax.adam(1e-2))
    source = data.Arrays(arrays, batch_size=5)  # the last batch of an evaluation is padded
    val = trainer.evaluation(task.measure, source)
    kept = hooks.average_params(decay=0.5)
    averaged = trainer.evaluation(task.measure, source, name="mean")
    chain = hooks.chain(
        hooks.every(2, hooks.evaluate(val)), kept, hooks.evaluate(averaged, params="average_params")
    )
    seen = []

    def note(state, metrics):
        seen.append(
            [one.known for phase in (val, averaged) for one in phase._shared.compiled.values()]
        )
        return state

    _, history = trainer.fit(
        task.init(jax.random.key(0), source.example),
        trainer.training(task.step, source),
        epochs=2,
        hooks=[hooks.on("train", note), chain],
    )
    assert seen[0] == [True, True]
    assert seen[1] == [True, True]
    assert "compiled train, evaluate/val, evaluate/mean in " in caplog.text
    assert set(history[1]) >= {"val/loss", "mean/loss"}


def test_functions_are_compiled_side_by_side():
    both = threading.Barrier(2, timeout=60)  # each waits for the other to have begun
    pending = {name: ComputedOnce(both.wait) for name in ("train", "val")}
    compile_side_by_side(pending)
    assert sorted(one.get() for one in pending.values()) == [0, 1]


def test_settings_of_this_thread_hold_for_what_it_compiles():
    pending = {name: ComputedOnce(threading.get_ident) for name in ("train", "val")}
    with jax.default_matmul_precision("highest"):
        compile_side_by_side(pending)
    assert {one.get() for one in pending.values()} == {threading.get_ident()}


def test_a_debug_mode_compiles_on_this_thread():
    pending = {"train": ComputedOnce(threading.get_ident)}
    with jax.debug_nans(True):
        compile_side_by_side(pending)
    assert pending["train"].get() == threading.get_ident()


def test_an_error_of_one_is_raised():
    def fail():
        raise RuntimeError("no memory")

    pending = {"train": ComputedOnce(lambda: 1), "val": ComputedOnce(fail)}
    with pytest.raises(RuntimeError, match="no memory"):
        compile_side_by_side(pending)


def test_a_notice_says_what_still_compiles(caplog, monkeypatch):
    caplog.set_level(logging.INFO, "entracte")
    monkeypatch.setattr(compilation, "NOTICE_AFTER", 0.0)
    noticed = threading.Event()
    caplog.handler.addFilter(lambda record: noticed.set() or True)
    compile_side_by_side({"train": ComputedOnce(lambda: noticed.wait(60))})
    assert "compiling train" in caplog.text


def test_phases_that_compute_the_same_are_compiled_once(arrays, linear):
    task = trainer.supervised(linear, losses.classification, optax.adam(1e-2))
    source = data.Arrays({name: array[:20] for name, array in arrays.items()}, batch_size=10)
    state = task.init(jax.random.key(0), source.example)
    program = [trainer.training(task.step, source, name=name) for name in ("one", "two")]
    after, _ = trainer.fit(state, program, epochs=1)
    assert int(after.step) == 4
    assert program[0]._shared is program[1]._shared
    assert len(program[0]._shared.compiled) == 1
