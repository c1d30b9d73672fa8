"""Populations: members train as they would alone, and stopped ones do not change."""

import math
import pickle
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import pytest

import hooks
import trainer
from trainer import Members, Phase, data

COUNT = 3


@pytest.fixture(scope="module")
def digits_states(task, digits):
    keys = jax.random.split(jax.random.key(7), COUNT)
    return [task.init(key, digits[0].example) for key in keys]


@pytest.fixture(scope="module")
def phase(task, digits):
    return trainer.training(task.step, digits[0])


@pytest.fixture(scope="module")
def lifted(phase):
    return trainer.population(phase, COUNT)


@pytest.fixture(scope="module")
def val(task, digits):
    return trainer.population(trainer.evaluation(task.measure, digits[1]), COUNT)


def test_members_train_as_they_would_alone(digits_states, phase, lifted):
    whole, history = trainer.fit(trainer.stack_states(digits_states), lifted, epochs=3)
    for number, state in enumerate(digits_states):
        alone, before = trainer.fit(state, phase, epochs=3)
        one = trainer.member(whole, number)
        chex.assert_trees_all_close(one.params, alone.params, atol=1e-5)
        assert int(one.step) == int(alone.step)
        for epoch, own in zip(history, before, strict=True):
            assert epoch["train/loss"].values[number] == pytest.approx(own["train/loss"], abs=1e-5)
    losses = [epoch["train/loss"] for epoch in history]
    assert losses[-1] == pytest.approx(losses[-1].values.mean())


def test_a_member_can_train_on_alone(digits_states, phase, lifted):
    whole, _ = trainer.fit(trainer.stack_states(digits_states), lifted, epochs=1)
    alone, _ = trainer.fit(trainer.member(whole, 1), phase, epochs=2)
    together, _ = trainer.fit(whole, lifted, epochs=2)
    chex.assert_trees_all_close(trainer.member(together, 1).params, alone.params, atol=1e-5)


def test_a_stopped_member_does_not_change(digits_states, lifted):
    state = trainer.stack_states(digits_states)
    live = jnp.array([True, False, True])
    state = state.replace(carry={**state.carry, "live": live})
    after, history = trainer.fit(state, lifted, epochs=2)
    stopped, moved = trainer.member(after, 1), trainer.member(after, 2)
    chex.assert_trees_all_equal(stopped, trainer.member(state, 1).replace(epoch=after.epoch))
    assert int(moved.step) == 12
    loss = history[-1]["train/loss"]
    assert float(loss) == pytest.approx((loss.values[0] + loss.values[2]) / 2)


def test_hooks_for_each_decide_as_they_would_alone(task, digits, digits_states, phase, lifted, val):
    def chain(measured, wrap):
        stop = hooks.stop_early("val/loss", patience=1, min_delta=0.109)
        return hooks.chain(hooks.evaluate(measured), wrap(stop))

    whole, history = trainer.fit(
        trainer.stack_states(digits_states), lifted, epochs=10, hooks=chain(val, hooks.each)
    )
    alone_val = trainer.evaluation(task.measure, digits[1])
    epochs = []
    for number, state in enumerate(digits_states):
        alone, _ = trainer.fit(state, phase, epochs=10, hooks=chain(alone_val, lambda hook: hook))
        epochs.append(int(alone.epoch))
        chex.assert_trees_all_close(trainer.member(whole, number).params, alone.params, atol=1e-4)
    assert whole.stop
    assert len(history) == max(epochs) < 10
    assert min(epochs) < max(epochs)  # or nothing would have been stopped by itself
    kept = whole.hook_state["each/stop_early/val/loss"]
    assert [entry.since for entry in kept] == [1] * COUNT


def test_a_population_resumes_bit_for_bit(digits_states, lifted, val, tmp_path):
    def chain(directory):
        return hooks.chain(
            hooks.evaluate(val),
            hooks.each(hooks.stop_early("val/loss", patience=1, min_delta=0.109)),
            hooks.save_checkpoints(directory, max_cost=None),
        )

    start = trainer.stack_states(digits_states)
    whole, _ = trainer.fit(start, lifted, epochs=8, hooks=chain(tmp_path / "whole"))
    for epochs in (1, 3, 8):
        parts, _ = trainer.fit(start, lifted, epochs=epochs, hooks=chain(tmp_path / "parts"))
    assert trainer.fingerprint(parts) == trainer.fingerprint(whole)


def test_the_best_member_is_returned(digits_states):
    state = trainer.stack_states(digits_states)
    scores = {"val/loss": Members([2.0, math.nan, 1.0], [True] * 3), "plain": 1.0}
    best = trainer.best_member(state, scores, "val/loss")
    chex.assert_trees_all_equal(best.params, digits_states[2].params)
    best = trainer.best_member(state, scores, "val/loss", mode="max")
    chex.assert_trees_all_equal(best.params, digits_states[0].params)
    with pytest.raises(TypeError, match="needs the values of all members"):
        trainer.best_member(state, scores, "plain", mode="min")
    with pytest.raises(ValueError, match="no member has a 'val/loss'"):
        trainer.best_member(state, {"val/loss": Members([math.nan] * 3, [True] * 3)}, "val/loss")
    with pytest.raises(ValueError, match="'min' or 'max'"):
        trainer.best_member(state, scores, "val/loss", mode="most")


def test_one_compiled_phase_serves_any_hooks(digits_states, lifted):
    start = trainer.stack_states(digits_states)
    trainer.fit(start, lifted, epochs=1)
    compiled = len(lifted._shared.compiled)
    trainer.fit(start, lifted, epochs=2, hooks=hooks.each(hooks.stop_on_nan()), dry_run=True)
    assert len(lifted._shared.compiled) == compiled


def test_members_are_floats():
    value = Members([1.0, 3.0, 8.0], [True, True, False])
    assert value == 2.0
    assert f"{value:.1f}" == "2.0"
    copied = pickle.loads(pickle.dumps(value))
    assert (copied.values.tolist(), copied.live.tolist()) == ([1.0, 3.0, 8.0], [True, True, False])
    assert math.isnan(Members([1.0], [True], [False]))
    assert Members([1.0, 3.0], [False, False]) == 2.0


def test_a_population_is_made_by_one_compiled_function(task, digits, digits_states):
    keys = jax.random.split(jax.random.key(7), COUNT)
    made = trainer.population_of(lambda key: task.init(key, digits[0].example), keys)
    chex.assert_trees_all_close(made.params, trainer.stack_states(digits_states).params, atol=1e-6)
    assert (made.epoch.shape, made.step.shape, made.stop) == ((), (COUNT,), False)
    with pytest.raises(TypeError, match="needs a typed key for each member"):
        trainer.population_of(lambda key: task.init(key, digits[0].example), jax.random.key(0))


MANY = """
import jax
from jax.nn.initializers import orthogonal
import trainer

def init(key):
    params = [orthogonal()(key, (64, 64)) for key in jax.random.split(key)]
    return trainer.TrainState.create(params=params, rng=key)

state = trainer.population_of(init, jax.random.split(jax.random.key(0), 256))
print([params.shape for params in state.params], jax.numpy.isfinite(state.params[1]).all())
"""


@pytest.mark.soak
def test_256_members_with_decomposed_weights_are_made():
    """In a process of its own: under vmap, two decompositions side by side never end."""
    run = subprocess.run(
        [sys.executable, "-c", MANY], capture_output=True, text=True, timeout=120, check=True
    )
    assert run.stdout == "[(256, 64, 64), (256, 64, 64)] True\n"


def test_other_states_and_phases_than_a_populations_are_refused(
    task, digits, phase, lifted, digits_states
):
    with pytest.raises(ValueError, match="members must be a whole number of at least 1"):
        trainer.population(phase, 0)
    with pytest.raises(ValueError, match="is already one of a population"):
        trainer.population(lifted, COUNT)
    with pytest.raises(ValueError, match="needs the state of a population"):
        trainer.fit(digits_states[0], lifted, epochs=1)
    with pytest.raises(ValueError, match="made for 3 members; the state has 2"):
        trainer.fit(trainer.stack_states(digits_states[:2]), lifted, epochs=1)
    stream = data.Stream([digits[0].example])
    with pytest.raises(
        ValueError, match="reads a Stream, and each member would need one of its own"
    ):
        trainer.population(trainer.training(task.step, stream), 2)
    with pytest.raises(IndexError, match="numbered from 0 to 2"):
        trainer.member(trainer.stack_states(digits_states), 3)


def test_states_that_differ_are_named(digits_states):
    other = digits_states[0].replace(params={"w": jnp.zeros(3)})
    with pytest.raises(ValueError, match="number 1 differs from the first:\n  params/b"):
        trainer.stack_states([digits_states[0], other])
    with pytest.raises(ValueError, match="share the epoch"):
        trainer.stack_states([digits_states[0], digits_states[0].replace(epoch=jnp.int32(4))])
    with pytest.raises(ValueError, match="at least 1 state"):
        trainer.stack_states([])


def test_a_phase_by_hand_may_report_any_metrics():
    def halve(state, data):
        return state.replace(params=state.params / 2), None, {"trace": jnp.arange(3) * state.params}

    alone = [
        trainer.TrainState.create(params=jnp.float32(p), rng=jax.random.key(0)) for p in (1, 2)
    ]
    program = trainer.population(Phase("shrink", halve, reduce={"trace": "last"}), 2)
    _, history = trainer.fit(trainer.stack_states(alone), program, epochs=1)
    assert history[0]["shrink/trace"].values.tolist() == [2.0, 4.0]
