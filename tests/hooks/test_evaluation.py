"""Evaluation between epochs."""

import pytest

import hooks
import trainer
from hooks import testing


def test_its_scores_are_in_the_history_and_reach_later_hooks(start, train, val):
    chain = hooks.chain(hooks.evaluate(val), hooks.stop_early("val/loss", patience=1, mode="max"))
    state, history = trainer.fit(start, train, epochs=9, hooks=chain)
    assert int(state.epoch) == 2
    assert history[1]["val/loss"] < history[0]["val/loss"]
    assert 0 < history[0]["val/accuracy"] <= 1


def test_it_measures_what_a_phase_in_the_program_measures(start, train, val):
    _, history = trainer.fit(start, [train, val], epochs=2)
    _, scored = trainer.fit(start, train, epochs=2, hooks=hooks.evaluate(val))
    for name in ("val/loss", "val/accuracy"):
        assert [e[name] for e in history] == [e[name] for e in scored]


def test_law_3_it_changes_nothing(start, train, val):
    alone, _ = trainer.fit(start, train, epochs=3)
    evaluated, _ = trainer.fit(start, train, epochs=3, hooks=hooks.evaluate(val))
    assert trainer.fingerprint(alone) == trainer.fingerprint(evaluated)


def test_it_compiles_once(start, train, task, digits):
    val = trainer.evaluation(task.measure, digits[1])
    for epochs in (2, 3):
        trainer.fit(start, train, epochs=epochs, hooks=hooks.evaluate(val))
    assert len(val._programs) == 1


def test_it_measures_the_average_of_the_hook_of_that_name(start, train, val):
    chain = hooks.chain(hooks.average_params(0.5), hooks.evaluate(val, params="average_params"))
    state, history = trainer.fit(start, train, epochs=3, hooks=chain)
    average = state.replace(params=state.memory["average_params"]["params"])
    assert hooks.evaluate(val)(average, {}).scores["val/loss"] == history[-1]["val/loss"]
    assert hooks.evaluate(val)(state, {}).scores["val/loss"] != history[-1]["val/loss"]


def test_the_average_must_stand_before_it(start, train, val):
    evaluate = hooks.evaluate(val, params="average_params")
    with pytest.raises(
        ValueError,
        match="'evaluate/val' needs the memory of 'average_params', which is not in the chain",
    ):
        trainer.fit(start, train, epochs=1, hooks=evaluate)
    with pytest.raises(ValueError, match="which is not before it"):
        trainer.fit(start, train, epochs=1, hooks=[evaluate, hooks.average_params()])


def test_a_training_phase_is_refused(train):
    with pytest.raises(ValueError, match=r"made by trainer\.evaluation; phase 'train'"):
        hooks.evaluate(train)


def test_it_keeps_the_laws(start, val):
    testing.check_hook(hooks.evaluate(val), start, {})
