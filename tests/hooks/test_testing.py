"""The check of hooks fails where a law is broken."""

import jax
import pytest

import hooks
from hooks.testing import check_hook


def test_a_hook_that_counts_in_a_closure_is_not_pure(state):
    calls = []

    def count(state, metrics):
        calls.append(1)
        return state.replace(scores={"calls": float(len(calls))})

    with pytest.raises(AssertionError, match="'count' is not pure: its scores differ"):
        check_hook(count, state, {})
    check_hook(hooks.observe(count), state, {})  # an observer may read off the world


def test_a_hook_that_changes_parameters_differently_is_not_pure(state):
    factors = iter(range(1, 99))

    def scale(state, metrics):
        factor = next(factors)
        return state.replace(params=jax.tree.map(lambda w: w * factor, state.params))

    with pytest.raises(AssertionError, match="'scale' is not pure: two calls"):
        check_hook(scale, state, {})


def test_a_hook_that_changes_the_metrics_is_found(state):
    def spoil(state, metrics):
        metrics["train/loss"] = 0.0
        return state

    with pytest.raises(AssertionError, match="'spoil' changed its argument, the metrics"):
        check_hook(spoil, state, {"train/loss": 1.0})


def test_a_hook_that_changes_the_structure_is_found(state):
    def grow(state, metrics):
        return state.replace(carry={"new": state.step})

    with pytest.raises(ValueError, match="'grow' must keep the structure"):
        check_hook(grow, state, {})


def test_a_hook_that_does_more_than_its_stage_allows_is_found(state):
    @hooks.observe
    def meddle(state, metrics):
        return state.replace(stop=True)

    with pytest.raises(ValueError, match="'meddle' is of stage 'observe'"):
        check_hook(meddle, state, {})


def test_a_hook_state_that_is_not_data_is_found(state):
    hook = hooks.stateful("odd", lambda state: len, lambda hook_state, state, metrics: (len, state))
    with pytest.raises((TypeError, ValueError), match="odd"):
        check_hook(hook, state, {})


def test_a_hook_that_keeps_state_elsewhere_is_not_pure(state):
    best = [0]

    def update(hook_state, state, metrics):
        best[0] += 1
        return hook_state + best[0] % 2, state

    with pytest.raises(AssertionError, match="'cheat'"):
        check_hook(hooks.stateful("cheat", lambda state: 0, update), state, {})


def test_a_check_that_checks_nothing_fails(state):
    def nothing(state, metrics):
        return state

    with pytest.raises(AssertionError, match="does not fire: .*'val/loss'.* is not among"):
        check_hook(hooks.reads("val/loss")(nothing), state, {})
    with pytest.raises(AssertionError, match="a trigger is closed"):
        check_hook(hooks.every(7, nothing), state, {})


def test_hooks_of_a_phase_are_checked_too(state):
    seen = []

    def note(state, metrics):
        seen.append("rollout")
        return state

    check_hook(hooks.on("rollout", note), state, {}, phases=("rollout",))
    assert "rollout" in seen


def test_a_hook_is_closed(state):
    closed = []
    hook = hooks.Hook(lambda state, metrics: state, "h", close=lambda error: closed.append(True))
    check_hook(hook, state, {})
    assert closed == [True]
