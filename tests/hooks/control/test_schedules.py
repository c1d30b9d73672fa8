"""Setting the optimizer's hyperparameters."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hooks
import trainer
from hooks import testing
from trainer import TrainState, losses


def rate(state, name="learning_rate"):
    return float(optax.tree.get(state.opt_state, name))


def make_state(optimizer):
    params = {"w": jnp.array([1.0, -2.0]), "b": jnp.zeros(())}
    opt_state = optimizer.init(params)
    return TrainState.create(params=params, opt_state=opt_state, rng=jax.random.key(0))


@pytest.fixture(scope="module")
def settable(linear, digits):
    """A task whose rate can be set, its state and its phase."""
    optimizer = optax.inject_hyperparams(optax.adamw)(learning_rate=1e-2, weight_decay=0.0)
    task = trainer.supervised(linear, losses.classification, optimizer)
    return task.init(jax.random.key(0), digits[0].example), trainer.training(task.step, digits[0])


# reduce_on_plateau


@pytest.mark.parametrize(
    ("values", "settings", "rates"),
    [
        ([3, 2, 1], {"patience": 1}, [0.1, 0.1, 0.1]),
        ([1, 1, 1], {"patience": 1}, [0.1, 0.05, 0.025]),
        ([1, 2, 2, 2, 2], {"patience": 2}, [0.1, 0.1, 0.05, 0.05, 0.025]),
        ([1, 2, 0.5, 2, 2], {"patience": 2}, [0.1, 0.1, 0.1, 0.1, 0.05]),
        ([1, 2, 3], {"patience": 1, "mode": "max"}, [0.1, 0.1, 0.1]),
        ([3, 2, 1], {"patience": 1, "mode": "max"}, [0.1, 0.05, 0.025]),
        ([1, 0.9, 0.8], {"patience": 2, "min_delta": 0.5}, [0.1, 0.1, 0.05]),
        ([1, math.nan], {"patience": 1}, [0.1, 0.05]),
        ([1, 1, 1, 1, 1], {"patience": 1, "cooldown": 2}, [0.1, 0.05, 0.05, 0.05, 0.025]),
        ([1, 1, 0.5, 1], {"patience": 1, "cooldown": 1}, [0.1, 0.05, 0.05, 0.025]),
        ([1, 1, 1, 1], {"patience": 1, "min_rate": 0.04}, [0.1, 0.05, 0.04, 0.04]),
        ([1, 1], {"patience": 1, "min_rate": 0.5}, [0.1, 0.1]),
    ],
)
def test_it_reduces_after_patience_evaluations_without_improvement(state, values, settings, rates):
    hook, seen = hooks.reduce_on_plateau("val/loss", factor=0.5, **settings), []
    for value in values:
        state = hook(state, {"val/loss": value})
        seen.append(rate(state))
    assert seen == pytest.approx(rates)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=12), st.integers(1, 3))
def test_it_reduces_whenever_stop_early_would_stop(values, patience):
    state = make_state(optax.inject_hyperparams(optax.sgd)(learning_rate=1.0))
    stopping = hooks.stop_early("loss", patience=patience)
    reducing = hooks.reduce_on_plateau("loss", factor=0.5, patience=patience)
    expected = 1.0
    for value in values:
        state = stopping(reducing(state, {"loss": value}), {"loss": value})
        if state.stop:
            expected /= 2
            early = state.hook_state["stop_early/loss"]._replace(since=0)
            state = state.replace(
                stop=False, hook_state={**state.hook_state, "stop_early/loss": early}
            )
        assert rate(state) == pytest.approx(expected)


def test_it_counts_evaluations_and_not_epochs(state):
    hook = hooks.reduce_on_plateau("val/loss", patience=1)
    state = hook(state, {"val/loss": 1.0})
    assert hook(state, {"train/loss": 9.0}) is state


def test_without_a_reduction_the_optimizer_state_is_the_same_object(state):
    hook = hooks.reduce_on_plateau("loss", patience=1, min_rate=0.1)
    after = hook(hook(state, {"loss": 1.0}), {"loss": 1.0})
    assert after.opt_state is state.opt_state


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"factor": 1.0}, r"factor must be in \(0, 1\)"),
        ({"factor": 0.0}, r"factor must be in \(0, 1\)"),
        ({"patience": 0}, "at least 1 evaluation"),
        ({"mode": "best"}, "'min' or 'max'"),
        ({"min_delta": -1}, "must not be negative"),
        ({"cooldown": -1}, "must not be negative"),
        ({"min_rate": -1}, "must not be negative"),
    ],
)
def test_bad_settings_of_a_plateau_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        hooks.reduce_on_plateau("val/loss", **settings)


def test_a_rate_that_cannot_be_set_is_refused_before_training(start, train):
    with pytest.raises(ValueError, match="'reduce_on_plateau/train/loss' needs an optimizer whose"):
        trainer.fit(start, train, epochs=1, hooks=hooks.reduce_on_plateau("train/loss"))


def test_a_plateau_resumes(state, phase, check_resumes):
    make = lambda: hooks.reduce_on_plateau("train/loss", mode="max", factor=0.5, patience=2)  # noqa: E731
    assert rate(check_resumes(make, state, phase)) == pytest.approx(0.025)


# set_hyperparams


def test_each_epoch_trains_with_the_value_for_the_epochs_completed_before_it(settable):
    state, phase = settable
    schedule = optax.linear_schedule(0.04, 0.0, 4)
    chain = hooks.set_hyperparams(learning_rate=schedule, weight_decay=0.5)
    state, history = trainer.fit(state, phase, epochs=3, hooks=chain)
    rates = [epoch["train/learning_rate"] for epoch in history]
    assert rates == pytest.approx([0.04, 0.03, 0.02])
    assert rate(state) == pytest.approx(0.01)  # for the next
    assert rate(state, "weight_decay") == 0.5


def test_law_8_setting_hyperparameters_compiles_nothing_again(settable):
    state, phase = settable
    trainer.fit(state, phase, epochs=1)
    chain = [
        hooks.set_hyperparams(learning_rate=lambda epoch: 0.1 / (epoch + 1)),
        hooks.reduce_on_plateau("train/loss", patience=1, mode="max"),
    ]
    after, _ = trainer.fit(state, phase, epochs=3, hooks=chain)
    assert len(phase._shared.compiled) == len(phase._shared.traces) == 1
    chex.assert_trees_all_equal_shapes_and_dtypes(state.opt_state, after.opt_state)


def test_an_unchanged_value_leaves_the_same_state_object(state):
    assert hooks.set_hyperparams(learning_rate=0.1)(state, {}) is state


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_schedule_of_another_dtype_is_cast(dtype):
    optimizer = optax.inject_hyperparams(optax.sgd, hyperparam_dtype=dtype)(learning_rate=0.5)
    state = make_state(optimizer)
    hook = hooks.set_hyperparams(learning_rate=lambda epoch: np.float64(0.25))
    after = hook(state, {})
    assert rate(after) == 0.25
    chex.assert_trees_all_equal_shapes_and_dtypes(state.opt_state, after.opt_state)
    again = hooks.reduce_on_plateau("loss", patience=1, factor=0.5)
    after = again(again(after, {"loss": 1.0}), {"loss": 1.0})
    assert rate(after) == 0.125
    chex.assert_trees_all_equal_shapes_and_dtypes(state.opt_state, after.opt_state)


def test_an_unknown_name_is_refused_before_training_with_the_known_ones(settable):
    state, phase = settable
    with pytest.raises(
        ValueError, match=r"momentum can be set.*\(there is: b1, b2, .*weight_decay"
    ):
        trainer.fit(state, phase, epochs=1, hooks=hooks.set_hyperparams(momentum=0.9))
    with pytest.raises(ValueError, match="needs what to set"):
        hooks.set_hyperparams()


def test_set_hyperparameters_resume(settable, check_resumes):
    make = lambda: hooks.set_hyperparams(learning_rate=optax.cosine_decay_schedule(0.1, 4))  # noqa: E731
    assert rate(check_resumes(make, *settable, epochs=3)) < 0.1


def test_they_keep_the_laws(state):
    fine = {"val/loss": 1.0}
    testing.check_hook(hooks.reduce_on_plateau("val/loss", patience=1), state, fine)
    testing.check_hook(hooks.set_hyperparams(learning_rate=lambda epoch: 0.5), state, {})


@pytest.fixture(scope="module")
def grouped(linear, digits):
    """The state and phase of a task with two groups, each with its own learning rate."""
    optimizer = optax.multi_transform(
        {
            "trunk": optax.inject_hyperparams(optax.sgd)(learning_rate=1e-3),
            "head": optax.inject_hyperparams(optax.adamw)(learning_rate=1e-1, weight_decay=0.0),
        },
        {"w": "trunk", "b": "head"},
    )
    task = trainer.supervised(linear, losses.classification, optimizer)
    state = task.init(jax.random.key(0), digits[0].example)
    return state, trainer.training(task.step, digits[0])


def test_one_group_is_set_and_each_rate_is_a_metric(grouped):
    state, phase = grouped
    chain = [
        hooks.set_hyperparams(trunk={"learning_rate": lambda epoch: 0.5 / 2**epoch}),
        hooks.set_hyperparams(head={"weight_decay": 0.25}),
    ]
    state, history = trainer.fit(state, phase, epochs=2, hooks=chain)
    trunk, head = (
        [e[f"train/learning_rate/{name}"] for e in history] for name in ("trunk", "head")
    )
    assert (trunk, head) == ([0.5, 0.25], pytest.approx([0.1, 0.1]))
    assert "train/learning_rate" not in history[0]
    assert float(optax.tree.get(state.opt_state, "weight_decay")) == 0.25


def test_a_name_that_several_groups_keep_is_refused_with_the_groups(grouped):
    """It would set one rate in all groups."""
    state, phase = grouped
    groups = r"'head' \(0\.1\), 'trunk' \(0\.001\); name the group"
    with pytest.raises(ValueError, match=f"learning_rate, which several groups .*{groups}"):
        trainer.fit(state, phase, epochs=1, hooks=hooks.set_hyperparams(learning_rate=0.5))
    with pytest.raises(ValueError, match=r"of a group 'hed', .*Did you mean 'head'"):
        trainer.fit(state, phase, epochs=1, hooks=hooks.set_hyperparams(hed={"learning_rate": 0.5}))
    hooks.set_hyperparams(weight_decay=0.5)(state, {})  # one group alone keeps it


def test_a_plateau_reduces_each_group_by_the_same_factor(grouped):
    state, _ = grouped
    hook = hooks.reduce_on_plateau("val/loss", factor=0.5, patience=1)
    state = hook(hook(state, {"val/loss": 1.0}), {"val/loss": 1.0})
    rates = [float(r) for _, r in optax.tree.get_all_with_path(state.opt_state, "learning_rate")]
    assert sorted(rates) == pytest.approx([0.0005, 0.05])
