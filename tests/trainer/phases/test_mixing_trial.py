"""Losses and measures that depend on other examples: declared ones get the whole batch."""

import functools
import logging
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hooks
import trainer
from trainer import data, losses
from trainer.losses import total

pytestmark = pytest.mark.usefixtures("compiled_quickly")

LINEAR = SimpleNamespace(
    init=lambda key, x: ({"w": jax.random.normal(key, (x.shape[1], 4))}, {}),
    apply=lambda params, model_state, x, *, key, train: (x @ params["w"], model_state),
)


def contrast(outputs, batch):
    """Each example is compared with the others of its batch."""
    labels = jnp.arange(len(outputs))
    return {"loss": optax.softmax_cross_entropy_with_integer_labels(outputs @ outputs.T, labels)}


contrastive = losses.Loss(contrast, whole_batch=True)


def normalised(outputs, batch):
    """Weights normalised by their batch."""
    weights = batch["inputs"][:, 0] ** 2
    return {"loss": ((outputs**2).sum(1), weights / weights.sum())}


def ranked(outputs, batch):
    """A metric beside the loss that depends on other examples."""
    return {"loss": (outputs**2).sum(1), "rank": outputs[:, 0] / outputs[:, 0].max()}


def probable(outputs, batch):
    """A nan where outputs are negative, such as random logits."""
    return {"loss": jnp.log(outputs[:, 0]) - jnp.log(outputs[:, 0].sum())}


def examples(count, batch_size, kind=data.Arrays):
    inputs = np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32)
    if kind is data.Arrays:
        return data.Arrays({"inputs": inputs}, batch_size)
    if kind is data.MemoryMap:
        return data.MemoryMap({"inputs": inputs}, batch_size, superbatch=2)
    return data.Stream(
        [{"inputs": inputs[at : at + batch_size]} for at in range(0, count, batch_size)], 2
    )


def task_of(loss, network=LINEAR, **settings):
    return trainer.supervised(network, loss, optax.sgd(0.1), **settings)


STATE = task_of(contrast).init(jax.random.key(0), examples(4, 4).example)


def exactly(state, inputs, batch_size):
    """The mean over all examples, each among those of its own batch."""
    outputs = np.asarray(inputs, np.float64) @ np.asarray(state.params["w"], np.float64)
    found = []
    for at in range(0, len(outputs), batch_size):
        part = outputs[at : at + batch_size]
        logits = part @ part.T
        found.extend(np.log(np.exp(logits).sum(1)) - np.diag(logits))
    return np.mean(found)


@settings(max_examples=6)
@given(st.integers(1, 11), st.integers(1, 8))
def test_law_10_a_measure_receives_its_whole_batch_and_nothing_else(count, batch_size):
    source = examples(count, batch_size)
    got = trainer.evaluate(STATE, trainer.evaluation(task_of(contrastive).measure, source))
    wanted = exactly(STATE, source.arrays["inputs"], batch_size)
    assert got["val/loss"] == pytest.approx(wanted, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("kind", [data.MemoryMap, data.Stream])
@pytest.mark.parametrize("count", [10, 3])
def test_the_last_batch_of_other_sources_keeps_its_size_too(kind, count):
    source = examples(count, 4, kind)
    got = trainer.evaluate(STATE, trainer.evaluation(task_of(contrastive).measure, source))
    wanted = exactly(STATE, examples(count, 4).arrays["inputs"], 4)
    assert got["val/loss"] == pytest.approx(wanted, rel=1e-5)


def test_the_other_executor_measures_the_tail_too():
    """On CPU a convolution is dispatched step by step."""

    def apply(params, model_state, x, *, key, train):
        x = jax.lax.conv_general_dilated(x[:, None], jnp.ones((1, 1, 1)), (1,), "SAME")
        return x[:, 0] @ params["w"], model_state

    network = SimpleNamespace(init=LINEAR.init, apply=apply)
    phase = trainer.evaluation(task_of(contrastive, network).measure, examples(10, 4))
    measured = phase.execute(STATE, None, donate=False)[2]
    assert [program.choice.executor for program, _ in measured.packed] == ["step", "step"]
    wanted = exactly(STATE, examples(10, 4).arrays["inputs"], 4)
    assert measured.read()[0]["val/loss"] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("loss", [contrast, normalised, ranked, probable])
@pytest.mark.parametrize("kind", [data.Arrays, data.Stream])
def test_an_undeclared_loss_of_other_examples_is_refused(loss, kind):
    source, task = examples(10, 4, kind), task_of(loss)
    remedy = rf"losses.Loss\({loss.__name__}, whole_batch=True\)"
    said = rf"{loss.__name__}.* gives an example other values .*{remedy}"
    with pytest.raises(ValueError, match=said):
        trainer.evaluate(STATE, trainer.evaluation(task.measure, source))
    step = trainer.Phase("train", lambda state, data: (state, None, {}))
    hook = hooks.evaluate(trainer.evaluation(task.measure, source))
    with pytest.raises(ValueError, match=said) as caught:
        trainer.fit(STATE, step, epochs=1, hooks=[hook])
    assert not any("epoch 1" in note for note in getattr(caught.value, "__notes__", ()))


def test_a_split_of_whole_batches_needs_no_trial():
    got = trainer.evaluate(STATE, trainer.evaluation(task_of(contrast).measure, examples(8, 4)))
    wanted = exactly(STATE, examples(8, 4).arrays["inputs"], 4)
    assert got["val/loss"] == pytest.approx(wanted, rel=1e-5)


def test_micro_batches_are_refused_to_a_loss_of_the_whole_batch():
    for loss in (contrastive, total(contrastive), functools.partial(contrastive)):
        with pytest.raises(ValueError, match="accumulate=2 would pass the loss .* part of a batch"):
            task_of(loss, accumulate=2)
    task, source = task_of(contrast, accumulate=2), examples(8, 4)
    with pytest.raises(ValueError, match="'contrast' gives .*accumulate=2 gives it a part"):
        trainer.fit(STATE, trainer.training(task.step, source), epochs=1)
    whole = trainer.training(task_of(contrast).step, source)
    _, history = trainer.fit(STATE, whole, epochs=1)  # training takes only whole batches
    assert np.isfinite(history[0]["train/loss"])


def normalising(always):
    """A network with batch normalisation, optionally also in evaluation, and a frozen base."""

    def apply(params, model_state, x, *, key, train):
        y = x @ (model_state["base"] + params["w"])
        mean = y.mean(0) if train or always else model_state["mean"]
        return y - mean, {**model_state, "mean": 0.9 * model_state["mean"] + 0.1 * y.mean(0)}

    def init(key, x):
        return LINEAR.init(key, x)[0], {"base": jnp.zeros((3, 4)), "mean": jnp.zeros(4)}

    return SimpleNamespace(init=init, apply=apply)


def squared(outputs, batch):
    return {"loss": (outputs**2).sum(1)}


def test_a_network_that_normalises_by_the_batch_in_evaluation_is_refused():
    source = examples(10, 4)
    for always in (False, True):
        task = task_of(squared, normalising(always))
        state = task.init(jax.random.key(0), source.example)
        phase = trainer.evaluation(task.measure, source)
        if always:
            with pytest.raises(ValueError, match="an example is measured otherwise .loss."):
                trainer.evaluate(state, phase)
        else:
            assert np.isfinite(trainer.evaluate(state, phase)["val/loss"])


def test_a_network_that_mixes_examples_without_statistics_is_refused():
    source = examples(10, 4)

    def apply(params, model_state, x, *, key, train):
        y = x @ params["w"]
        return y - y.mean(0), model_state

    task = task_of(squared, SimpleNamespace(init=LINEAR.init, apply=apply))
    state = task.init(jax.random.key(0), source.example)
    with pytest.raises(ValueError, match="an example is measured otherwise .loss."):
        trainer.evaluate(state, trainer.evaluation(task.measure, source))


def test_a_measure_of_ones_own_is_tried_and_may_declare_it():
    def measure(state, batch):
        return {"share": batch["inputs"][:, 0] / batch["inputs"][:, 0].sum()}

    with pytest.raises(ValueError, match="an example is measured otherwise .share."):
        trainer.evaluate(STATE, trainer.evaluation(measure, examples(10, 4)))
    whole = trainer.Measure(measure, whole_batch=True)
    got = trainer.evaluate(STATE, trainer.evaluation(whole, examples(10, 4)))
    assert got["val/share"] == pytest.approx(3 / 10, rel=1e-5)  # 1 of each of three batches


def test_statistics_of_micro_batches_are_logged(caplog):
    source, task = examples(8, 8), task_of(squared, normalising(False), accumulate=4)
    state = task.init(jax.random.key(0), source.example)
    with caplog.at_level(logging.INFO, logger="entracte"):
        trainer.fit(state, trainer.training(task.step, source), epochs=1)
    said = [r.getMessage() for r in caplog.records if "accumulate" in r.getMessage()]
    assert said == [
        "accumulate=4: what the network keeps of batches (mean) is that of micro-batches of 2 "
        "examples, not of the batch of 8"
    ]


def test_a_population_is_tried_on_its_first_member():
    task, source = task_of(contrast), examples(10, 4)
    keys = jax.random.split(jax.random.key(0), 2)
    state = trainer.population_of(lambda key: task.init(key, source.example), keys)
    phase = trainer.population(trainer.evaluation(task.measure, source), 2)
    with pytest.raises(ValueError, match=r"losses.Loss\(contrast, whole_batch=True\)"):
        trainer.evaluate(state, phase)
    whole = trainer.population(trainer.evaluation(task_of(contrastive).measure, source), 2)
    got = trainer.evaluate(state, whole)["val/loss"]
    wanted = [exactly(trainer.member(state, n), source.arrays["inputs"], 4) for n in range(2)]
    np.testing.assert_allclose(got.values, wanted, rtol=1e-5)


def test_a_loss_is_tried_once_per_shape():
    asked = []

    def counting(outputs, batch):
        asked.append(len(outputs))
        return losses.regression(outputs, batch)

    inputs = np.ones((10, 3), np.float32)
    source = data.Arrays({"inputs": inputs, "targets": np.ones((10, 4), np.float32)}, 4)
    task = task_of(counting)
    for _ in range(2):
        trainer.evaluation(task.measure, source).verify(STATE)
    assert asked == [4]
