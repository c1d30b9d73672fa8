"""The best parameters, restored at the end."""

import math

import chex
import jax
import jax.numpy as jnp
import pytest

import hooks
import trainer
from hooks import testing
from trainer import TrainState


def wander(state, data):
    """A phase: w is 1, 2, 3, ...; the loss is smallest at 3, and batch statistics follow."""
    w = state.params["w"] + 1
    after = state.replace(step=state.step + 1, params={"w": w}, model_state={"mean": -w})
    return after, None, {"loss": jnp.abs(w - 3).sum()}


PHASE = trainer.Phase("train", wander)


def make_state():
    params = {"w": jnp.zeros(2)}
    return TrainState.create(
        params=params, model_state={"mean": jnp.zeros(2)}, rng=jax.random.key(0)
    )


@pytest.mark.parametrize(
    ("values", "mode", "best"),
    [
        ([3, 1, 2], "min", 2),
        ([3, 1, 2], "max", 1),
        ([1, 1, 1], "min", 1),  # the first of equal values
        ([math.nan, 2, math.nan], "min", 2),
        ([math.nan], "min", None),
        ([math.inf], "min", None),
        ([], "min", None),
    ],
)
def test_the_parameters_of_the_best_value_are_restored(values, mode, best):
    hook, state = hooks.keep_best("loss", mode=mode), make_state()
    for number, value in enumerate(values, 1):
        model_state = {"mean": jnp.full(2, -1.0 * number)}
        state = state.replace(params={"w": jnp.full(2, 1.0 * number)}, model_state=model_state)
        state = hook(state, {"loss": value})
    after = hook(state, {}, "end")
    if best is None:
        assert after is state
    else:
        assert after.params["w"].tolist() == [best, best]
        assert after.model_state["mean"].tolist() == [-best, -best]


def test_a_run_returns_the_best_and_a_longer_one_continues_from_the_last(tmp_path):
    chain = lambda: [  # noqa: E731
        hooks.keep_best("train/loss"),
        hooks.save_checkpoints(tmp_path, max_cost=None),
    ]
    best, _ = trainer.fit(make_state(), PHASE, epochs=5, hooks=chain())
    assert best.params["w"].tolist() == [3.0, 3.0]
    assert best.model_state["mean"].tolist() == [-3.0, -3.0]
    assert int(best.epoch) == 5
    again, history = trainer.fit(make_state(), PHASE, epochs=5, hooks=chain())
    assert len(history) == 1  # as recorded
    assert trainer.fingerprint(again) == trainer.fingerprint(best)
    longer, history = trainer.fit(make_state(), PHASE, epochs=6, hooks=chain())
    assert [epoch["train/loss"] for epoch in history] == [
        6.0
    ]  # w is 6 in the loss and in the state
    assert longer.params["w"].tolist() == [3.0, 3.0]


def test_law_5_it_resumes(check_resumes):
    assert (
        check_resumes(lambda: hooks.keep_best("train/loss"), make_state(), PHASE).params["w"][0]
        == 3
    )


def test_without_the_metric_nothing_is_compared():
    state = make_state()
    assert hooks.keep_best("val/loss")(state, {"train/loss": 1.0}) is state


def test_it_keeps_the_average_that_was_measured():
    chain = [hooks.average_params(0.5), hooks.keep_best("train/loss", params="average_params")]
    state, _ = trainer.fit(make_state(), PHASE, epochs=3, hooks=chain)
    averaged, _ = trainer.fit(make_state(), PHASE, epochs=3, hooks=hooks.average_params(0.5))
    average = averaged.hook_state["average_params"]["params"]
    chex.assert_trees_all_equal(state.params, average)
    assert average["w"][0] < 3
    with pytest.raises(ValueError, match="needs the .* of 'average_params', which is not bef"):
        trainer.fit(make_state(), PHASE, epochs=1, hooks=chain[::-1])


def normalise(state, data):
    """A policy's phase, whose normalisation statistics change with its parameters."""
    w = state.params["w"] + 1
    seen = {"observations": {"mean": 10 * w}, "rewards": -w}
    carry = {**state.carry, "normalization": seen, "environment": w}
    after = state.replace(step=state.step + 1, params={"w": w}, carry=carry)
    return after, None, {"return": -jnp.abs(w - 3).sum()}


def test_normalisation_statistics_are_restored_with_the_policy(tmp_path):
    """With the last epoch's statistics the returned policy would not be the one measured."""
    zeros = jnp.zeros(2)
    first = {"observations": {"mean": zeros}, "rewards": zeros}
    state = make_state().replace(carry={"normalization": first, "environment": zeros})
    phase = trainer.Phase("train", normalise)
    chain = [hooks.keep_best("train/return"), hooks.save_checkpoints(tmp_path, max_cost=None)]
    best, _ = trainer.fit(state, phase, epochs=5, hooks=chain)
    assert best.params["w"].tolist() == [3.0, 3.0]
    assert best.carry["normalization"]["observations"]["mean"].tolist() == [30.0, 30.0]
    assert best.carry["normalization"]["rewards"].tolist() == [-3.0, -3.0]
    assert best.carry["environment"].tolist() == [5.0, 5.0]
    saved = trainer.restore(tmp_path, state)
    assert saved.carry["normalization"]["observations"]["mean"].tolist() == [50.0, 50.0]
    own = hooks.keep_best("train/return", carry=("environment",))
    best, _ = trainer.fit(state, phase, epochs=5, hooks=own)
    assert best.carry["environment"].tolist() == [3.0, 3.0]
    assert best.carry["normalization"]["rewards"].tolist() == [-5.0, -5.0]
    with pytest.raises(ValueError, match=r"carry must be a sequence of names, such as \('env"):
        hooks.keep_best("train/return", carry="environment")


def test_law_8_restoring_compiles_no_phase_again():
    state, _ = trainer.fit(make_state(), PHASE, epochs=4, hooks=hooks.keep_best("train/loss"))
    trainer.fit(state, PHASE, epochs=6, hooks=hooks.keep_best("train/loss"))
    assert len(PHASE._shared.compiled) == 1


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="'min' or 'max', .*; got 'best'"):
        hooks.keep_best("val/loss", mode="best")


def test_it_keeps_the_laws(state):
    after = testing.check_hook(hooks.keep_best("val/loss"), state, {"val/loss": 1.0})
    chex.assert_trees_all_equal(after.params, state.params)
