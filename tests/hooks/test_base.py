"""Hooks from plain functions: declarations and hook states."""

import functools

import jax
import pytest

import hooks
import trainer
from trainer.loop.events import HookRunner


def nothing(state, metrics):
    return state


def test_a_plain_function_is_a_control_hook_at_epoch():
    (part,) = hooks.chain(nothing).parts
    assert (part.name, part.at, part.stage) == ("nothing", "epoch", "control")


def test_a_partial_function_keeps_its_name():
    def scaled(factor, state, metrics):
        return state

    (part,) = hooks.chain(functools.partial(scaled, 2)).parts
    assert part.name == "scaled"


def test_declarations_add_up():
    hook = hooks.reads("a")(hooks.writes("c")(hooks.reads("b")(hooks.observe(nothing))))
    assert (hook.reads, hook.writes, hook.stage) == (("b", "a"), ("c",), "observe")


def test_a_hook_does_not_fire_without_what_it_reads(state):
    def fail(state, metrics):
        raise AssertionError("fired")

    hook = hooks.reads("val/loss")(fail)
    assert hook(state, {"train/loss": 1.0}) is state
    with pytest.raises(AssertionError, match="fired"):
        hook(state, {"val/loss": 1.0})


@pytest.mark.parametrize("declare", [hooks.observe, hooks.reads("a"), hooks.writes("a")])
def test_a_declaration_is_of_one_hook(declare):
    with pytest.raises(ValueError, match="declares one hook; got a chain of 2"):
        declare(hooks.chain(nothing, nothing))


def test_a_hook_state_is_at_its_name_and_saved_with_the_state(state, phase):
    def update(hook_state, state, metrics):
        return {"sum": hook_state["sum"] + metrics["train/loss"]}, state

    total = hooks.stateful("total", lambda state: {"sum": 0.0}, update)
    state, history = trainer.fit(state, phase, epochs=3, hooks=total)
    assert state.hook_state["total"]["sum"] == sum(epoch["train/loss"] for epoch in history)


def test_an_unchanged_hook_state_returns_the_same_state_object(state):
    same = hooks.stateful(
        "same", lambda state: 0, lambda hook_state, state, metrics: (hook_state, state)
    )
    state = same(state, {})
    assert state.hook_state == {"same": 0}
    assert same(state, {}) is state


@pytest.mark.parametrize("result", [None, 3, (1, None), (1, 2, 3)])
def test_an_update_must_return_hook_state_and_state(state, result):
    wrong = hooks.stateful("wrong", lambda state: 0, lambda hook_state, state, metrics: result)
    with pytest.raises(TypeError, match=r"'wrong' must return \(hook_state, state\)"):
        wrong(state, {})


def test_an_observer_lets_parts_of_a_state_be_gathered(state, phase):
    seen = []

    def look(state, metrics):
        seen.append(state.params)
        return state

    hook = hooks.observe(look, gather=("params", "opt_state/momentum"))
    assert hook.gather == ("params", "opt_state/momentum")
    with pytest.raises(ValueError, match=r"lets 'opt_state/momentum' be gathered.*no such part"):
        trainer.fit(state, phase, epochs=1, hooks=hook)
    trainer.fit(state, phase, epochs=1, hooks=hooks.observe(look, gather="params/w"))
    assert isinstance(seen[0]["w"], jax.Array)


@pytest.mark.parametrize(
    ("gather", "error", "told"),
    [
        ("param", ValueError, r"a state has no field 'param' of arrays. Did you mean 'params'\?"),
        ("scores", ValueError, "no field 'scores' of arrays"),
        (3, TypeError, "takes a field of the state, 'params', or several; got 3"),
    ],
)
def test_what_cannot_be_gathered_is_refused_where_it_is_written(gather, error, told):
    with pytest.raises(error, match=told):
        hooks.observe(lambda state, metrics: state, gather=gather)


def test_only_observers_have_something_gathered():
    with pytest.raises(ValueError, match="is of stage 'control', and gather is for observers"):
        trainer.Hook(lambda state, metrics: state, "mine", gather=("params",))
    with pytest.raises(ValueError, match="cannot gather at 'error'"):
        HookRunner(hooks.on("error", hooks.observe(lambda s, m: s, gather="params")), [])
    chain = hooks.observe(hooks.record("x", lambda s, m: 1.0, hooks.Console()), gather="params")
    assert [part.gather for part in chain.parts] == [(), ("params",)]
