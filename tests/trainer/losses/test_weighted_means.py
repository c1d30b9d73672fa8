"""Weighted means: over all weights of an epoch; a batch without weights changes nothing."""

import math
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import trainer
from trainer import data, losses
from trainer.phases.reductions import WEIGHT, reduce_pieces
from trainer.rl import PPOConfig, minibatch_steps

pytestmark = pytest.mark.usefixtures("compiled_quickly")

VOCABULARY = 5

LOOKUP = SimpleNamespace(
    init=lambda key, x: ({"w": jax.random.normal(key, (VOCABULARY, VOCABULARY))}, {}),
    apply=lambda params, model_state, x, *, key, train: (params["w"][x], model_state),
)
"""Logits of the next token by the one before it."""


def text(*tokens, batch_size=2):
    """Sequences of six tokens, of which as many are trained as it says."""
    random = np.random.default_rng(0)
    inputs = random.integers(0, VOCABULARY, (len(tokens), 6)).astype(np.int32)
    labels = random.integers(0, VOCABULARY, (len(tokens), 6)).astype(np.int32)
    mask = np.arange(6) < np.array(tokens)[:, None]
    return data.Arrays({"inputs": inputs, "labels": labels, "mask": mask}, batch_size)


def task_of(optimizer, **settings):
    return trainer.supervised(LOOKUP, losses.language_modeling, optimizer, **settings)


def started(task, source):
    return task.init(jax.random.key(0), source.example)


RAGGED = text(1, 6, 3, 0, 0, 5, 2, 4)


@pytest.mark.parametrize(
    ("batch_size", "executor", "accumulate"), [(1, "scan", 1), (2, "step", 2), (4, "scan", 2)]
)
def test_law_13_training_measures_the_mean_over_all_tokens(batch_size, executor, accumulate):
    task = task_of(optax.sgd(0.0), accumulate=accumulate)
    source = data.Arrays(RAGGED.arrays, batch_size)
    state = started(task, source)
    wanted = trainer.evaluate(
        state, trainer.evaluation(task.measure, data.Arrays(source.arrays, 3))
    )
    phase = trainer.training(task.step, source, executor=executor)
    got, traces, _ = phase.execute(state, None, donate=False)[2].read()
    for name in ("loss", "accuracy", "perplexity", "bits_per_character"):
        assert got[f"train/{name}"] == pytest.approx(wanted[f"val/{name}"], rel=1e-5)
    entropy, tokens = losses.language_modeling(
        LOOKUP.apply(state.params, {}, source.arrays["inputs"], key=None, train=False)[0],
        source.arrays,
    )["loss"]
    exact = np.average(np.asarray(entropy, np.float64), weights=np.asarray(tokens, np.float64))
    assert got["train/loss"] == pytest.approx(exact, rel=1e-5)
    assert set(got) == {n.replace("val", "train") for n in wanted} | {"train/grad_norm"}
    assert set(phase.list_metric_names(state)) == set(got)
    assert traces["train/loss"].shape == (8 // batch_size,)


def test_law_13_holds_for_each_member_of_a_population():
    task = task_of(optax.sgd(0.0))
    keys = jax.random.split(jax.random.key(1), 2)
    whole = trainer.population_of(lambda key: task.init(key, RAGGED.example), keys)
    phases = trainer.population(
        (trainer.training(task.step, RAGGED), trainer.evaluation(task.measure, RAGGED)), 2
    )
    _, history = trainer.fit(whole, phases, epochs=1)
    for name in ("loss", "perplexity"):
        train, val = (history[0][f"{phase}/{name}"].values for phase in ("train", "val"))
        np.testing.assert_allclose(train, val, rtol=1e-5)
    assert len(set(val)) == 2


@given(
    st.lists(
        st.lists(st.tuples(st.floats(-50, 50), st.integers(0, 9)), min_size=1, max_size=5),
        min_size=1,
        max_size=4,
    )
)
def test_any_number_of_pieces_is_weighed_together(pieces):
    measured = [
        {
            "loss": np.array([v if w else math.nan for v, w in piece], np.float32),
            "loss" + WEIGHT: np.array([w for _, w in piece], np.float32),
        }
        for piece in pieces
    ]
    values, traces = reduce_pieces(measured, {}, "train")
    pairs = [pair for piece in pieces for pair in piece]
    weight = sum(w for _, w in pairs)
    wanted = sum(v * w for v, w in pairs) / weight if weight else math.nan
    assert values == {"train/loss": pytest.approx(wanted, rel=1e-5, abs=1e-4, nan_ok=True)}
    assert len(traces["train/loss"]) == len(pairs)


@pytest.mark.parametrize(("reduction", "wanted"), [("last", 1.0), ("max", 3.0), ("sum", 4.0)])
def test_other_reductions_ignore_steps_without_weight(reduction, wanted):
    trace = np.array([3.0, 1.0, math.nan], np.float32)
    piece = {"loss": trace, "loss" + WEIGHT: np.array([1.0, 9.0, 0.0], np.float32)}
    assert reduce_pieces([piece], {"loss": reduction}, "train")[0] == {"train/loss": wanted}


def test_a_weight_must_have_the_shape_of_its_metric():
    def run(state, data):
        return state, None, {"loss": jnp.zeros(3), "loss.weight": jnp.ones(())}

    state = trainer.TrainState.create(params={}, rng=jax.random.key(0))
    with pytest.raises(ValueError, match=r"of its shape, \[3\]; got \[\]"):
        trainer.Phase("train", run).list_metric_names(state)


@pytest.mark.parametrize(
    "settings",
    [{}, {"accumulate": 2}, {"clip_norm": 1e-3}, {"precision": "float16"}],
    ids=lambda settings: next(iter(settings), "plain"),
)
def test_a_batch_without_a_token_changes_nothing_and_counts_in_no_mean(settings):
    task = task_of(optax.adam(0.1), **settings)
    step = jax.jit(task.step)
    full, empty = text(3, 6).example, text(0, 0).example
    begun, wanted = step(trainer.state.strip_host_fields(started(task, text(3, 6))), full)
    after, metrics = step(begun, empty)
    for part in ("params", "opt_state", "carry"):
        chex.assert_trees_all_equal(getattr(after, part), getattr(begun, part))
    assert int(after.step) == 2
    assert math.isnan(metrics["loss"])
    assert float(metrics["loss.weight"]) == float(metrics["grad_norm.weight"]) == 0.0
    both = {k: np.stack([wanted[k], metrics[k]]) for k in wanted}
    values, _ = reduce_pieces([both], {}, "train")
    for name in {"loss", "accuracy", "grad_norm", "clipped"} & wanted.keys():
        assert values[f"train/{name}"] == pytest.approx(float(wanted[name]), rel=1e-6)


def test_an_epoch_without_a_token_has_the_same_metrics_in_training_and_evaluation():
    task, source = task_of(optax.adam(0.1)), text(0, 0, 0, 0)
    state = started(task, source)
    phases = trainer.training(task.step, source), trainer.evaluation(task.measure, source)
    after, history = trainer.fit(state, phases, epochs=1)
    chex.assert_trees_all_equal(after.params, state.params)
    for name in ("loss", "accuracy", "perplexity"):
        assert math.isnan(history[0][f"train/{name}"])
        assert math.isnan(history[0][f"val/{name}"])


def test_a_value_without_weight_may_be_nan():
    """Zero times nan is nan."""

    def logarithm(outputs, batch):
        return {"loss": (jnp.log(batch["targets"]) + outputs.sum((1, 2)), batch["counts"])}

    arrays = {"inputs": RAGGED.arrays["inputs"][:2], "targets": np.float32([1, -1])}
    source = data.Arrays(arrays | {"counts": np.float32([2, 0])}, 2)
    task = trainer.supervised(LOOKUP, logarithm, optax.sgd(0.1))
    state, metrics = jax.jit(task.step)(started(task, source), source.example)
    assert np.isfinite(metrics["loss"])
    assert np.isfinite(state.params["w"]).all()
    assert np.isfinite(
        trainer.evaluate(state, trainer.evaluation(task.measure, source))["val/loss"]
    )


def test_an_unweighted_step_costs_nothing():
    def plain(outputs, batch):
        return {"loss": losses.language_modeling(outputs, batch)["loss"][0]}

    source = text(3, 6)
    counts = []
    for loss in (plain, losses.language_modeling):
        task = trainer.supervised(LOOKUP, loss, optax.adam(0.1))
        jaxpr = jax.make_jaxpr(task.step)(started(task, source), source.example)
        counts.append(str(jaxpr).count("select_n"))
    assert counts[0] < counts[1]
    _, metrics = jax.eval_shape(task.step, started(task, source), source.example)
    assert {name for name in metrics if name.endswith(WEIGHT)} == {
        "loss.weight",
        "accuracy.weight",
        "grad_norm.weight",
    }


def test_a_minibatch_without_weight_changes_nothing():
    def weighed(outputs, batch):
        return {"loss": (outputs["value"] ** 2, batch["observation"][:, 0])}

    def look(params, model_state, observation, *, key, train):
        value = observation[..., 1] * params["w"]
        return {"logits": jnp.stack([value, -value], -1), "value": value}, model_state

    network = SimpleNamespace(init=lambda key, x: ({"w": jnp.ones(())}, {}), apply=look)
    optimizer = optax.adam(0.1)
    params = {"w": jnp.ones(())}
    state = trainer.TrainState.create(
        params=params, opt_state=optimizer.init(params), rng=jax.random.key(0)
    )
    rows = jnp.array([[[1.0, 2.0]], [[0.0, 9.0]]])  # [time, env, features]: one counts
    batch = {"observation": rows, "first": jnp.zeros((2, 1), bool), "value": jnp.zeros((2, 1))}
    after, traces = minibatch_steps.update_on_minibatches(
        *(state, minibatch_steps.group_units(batch, ()), network, optimizer, losses.Loss(weighed)),
        config=PPOConfig(epochs=1, minibatches=2, clip_norm=None),
        key=jax.random.key(1),
    )
    assert sorted(traces["loss.weight"].tolist()) == [0.0, 1.0]
    updates, _ = optimizer.update({"w": jnp.float32(8.0)}, state.opt_state, params)
    assert float(after.params["w"]) == pytest.approx(float(1 + updates["w"]))
    assert int(after.step) == 2
