"""Metrics of whatever is collected over a split, in phases of all kinds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hooks
import trainer
from trainer import data, measures

INPUTS = np.array([5.0, 1.0, 4.0, 2.0, 8.0, 3.0, 7.0], np.float32)


def scaled(state, batch):
    return {"value": state.params * batch["inputs"], "kept": batch["inputs"] > 2}


def median(collected):
    assert collected["kept"].dtype in (np.bool_, np.int32)
    return np.median(collected["value"][collected["kept"].astype(bool)])


def error(state, batch):
    return {"error": batch["inputs"] - 2}


MEDIAN = measures.over_split(scaled, {"median": median})


@pytest.fixture(scope="module")
def start():
    return trainer.TrainState.create(params=jnp.float32(2), rng=jax.random.key(0))


def sources():
    batches = [{"inputs": INPUTS[:3]}, {"inputs": INPUTS[3:6]}, {"inputs": INPUTS[6:]}]
    return [data.Arrays({"inputs": INPUTS}, 2), data.Stream(batches, superbatch=2)]


@pytest.mark.parametrize("source", sources(), ids=["device", "host"])
@pytest.mark.parametrize("whole_batch", [False, True])
def test_padding_is_left_out(start, source, whole_batch):
    measure = measures.over_split(scaled, {"median": median}, whole_batch=whole_batch)
    phase = trainer.evaluation([error, measure], source)
    assert phase.list_metric_names(start) == ("val/error", "val/median")
    scores = trainer.evaluate(start, phase)
    assert scores == {"val/error": pytest.approx(INPUTS.mean() - 2), "val/median": 10.0}


def test_every_member_of_a_population_has_its_value():
    states = trainer.stack_states(
        [
            trainer.TrainState.create(params=jnp.float32(scale), rng=jax.random.key(0))
            for scale in (1, 3)
        ]
    )
    phase = trainer.population(trainer.evaluation([error, MEDIAN], sources()[0]), 2)
    found = trainer.evaluate(states, phase)["val/median"]
    assert found.values.tolist() == [5.0, 15.0]


def test_hooks_read_the_scores_of_each_epoch(start):
    def step(state, batch):
        after = state.replace(step=state.step + 1, params=state.params / 2)
        return after, {"loss": state.params}

    seen = []

    def note(state, metrics):
        seen.append(metrics["val/median"])
        return state

    phase = trainer.evaluation(MEDIAN, sources()[0])
    trainer.fit(
        start,
        trainer.training(step, data.Arrays({"inputs": INPUTS}, 7)),
        epochs=2,
        hooks=hooks.chain(hooks.evaluate(phase), hooks.reads("val/median")(note)),
        dry_run=True,
    )
    assert seen[-2:] == [5.0, 2.5]


def test_a_sharded_state_has_the_same_value(start):
    spread = trainer.spread(start, trainer.mesh(data=len(jax.devices())))
    found = trainer.evaluate(spread, trainer.evaluation(MEDIAN, data.Arrays({"inputs": INPUTS}, 2)))
    assert found == {"val/median": 10.0}


def fail(collected):
    raise ZeroDivisionError("no example")


@pytest.mark.parametrize(
    ("metric", "raised", "match"),
    [
        (lambda collected: collected["value"], TypeError, r"'m' of phase 'val' must be a number"),
        (lambda collected: "high", TypeError, "must be a number; got 'high'"),
        (fail, ZeroDivisionError, "no example"),
    ],
)
def test_a_metric_that_fails_is_named(start, metric, raised, match):
    phase = trainer.evaluation(measures.over_split(scaled, {"m": metric}), sources()[0])
    with pytest.raises(raised, match=match) as error:
        trainer.evaluate(start, phase)
    if raised is ZeroDivisionError:
        assert "in computing m of the whole split of phase 'val'" in error.value.__notes__[0]


def test_wrong_arguments_are_an_error_before_training(start):
    with pytest.raises(ValueError, match="over_split needs a metric; got none"):
        measures.over_split(scaled, {})
    with pytest.raises(TypeError, match="takes metrics as a dict"):
        measures.over_split(scaled, median)
    with pytest.raises(ValueError, match="needs a measure, or several; got an empty list"):
        trainer.evaluation([], sources()[0])
    scalar = measures.over_split(lambda state, batch: state.params, {"m": median})
    with pytest.raises(
        ValueError, match="whose first axis is the 2 examples of a batch; got values"
    ):
        trainer.evaluate(start, trainer.evaluation(scalar, sources()[0]))
    with pytest.raises(ValueError, match="several metrics named 'median'"):
        trainer.evaluate(start, trainer.evaluation([MEDIAN, MEDIAN], sources()[0]))
    mixing = measures.over_split(lambda s, b: b["inputs"] - b["inputs"].mean(), {"m": np.median})
    with pytest.raises(ValueError, match="where other examples of its batch change"):
        trainer.evaluate(start, trainer.evaluation(mixing, sources()[0]))
