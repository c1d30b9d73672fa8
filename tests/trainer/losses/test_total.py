"""Sums of losses: equal to a single loss, with scheduled coefficients, and impossible sums."""

import functools
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import trainer
from trainer import data, losses
from trainer.losses import total
from trainer.losses.loss import as_loss
from trainer.state import strip_host_fields

pytestmark = pytest.mark.usefixtures("compiled_quickly")


def large(outputs, batch):
    return {"loss": jnp.sum(outputs**2, axis=-1), "size": jnp.abs(outputs).sum(axis=-1)}


def weighted(outputs, batch):
    return {"loss": (outputs[:, 0], jnp.array([1.0, 3.0]))}


OUTPUTS = jnp.array([[1.0, 2.0], [3.0, 0.0]])
LABELS = {"labels": jnp.array([0, 1])}


def test_terms_add_up_by_their_coefficients():
    values = total(losses.classification, (large, 0.5))(OUTPUTS, LABELS)
    alone = losses.classification(OUTPUTS, LABELS)
    chex.assert_trees_all_close(values["loss"], alone["loss"] + jnp.array([2.5, 4.5]))
    chex.assert_trees_all_close(values["classification_loss"], alone["loss"])
    assert values.keys() == {"loss", "classification_loss", "accuracy", "large_loss", "size"}


def test_examples_have_the_weights_of_the_first_weighted_term():
    values = total(large, (weighted, 2.0))(OUTPUTS, {})
    for name, wanted in (
        ("loss", [5.0 + 2 * 1, 9.0 + 2 * 3]),
        ("large_loss", [5.0, 9.0]),
        ("weighted_loss", [1.0, 3.0]),
    ):
        assert [x.tolist() for x in values[name]] == [wanted, [1.0, 3.0]]
    assert values["size"].tolist() == [3.0, 3.0]


def tokens_of(count):
    """Logits for, and labels of, sequences whose masks leave some tokens each."""
    random = np.random.default_rng(0)
    mask = np.arange(6) < random.integers(1, 7, (count, 1))
    return data.Arrays(
        {
            "inputs": random.normal(size=(count, 6, 4)).astype(np.float32),
            "labels": random.integers(0, 4, (count, 6)),
            "mask": mask,
        },
        8,
    )


def scaling(key, inputs):
    return {"scale": jnp.ones(())}, {}


def scaled(params, model_state, inputs, *, key, train):
    return params["scale"] * inputs, model_state


def spread(outputs, batch):
    return {"loss": jnp.mean(outputs**2, axis=(1, 2))}


def test_a_sum_with_tokens_is_exact_over_any_batches():
    loss = total(losses.language_modeling, (spread, 0.5))
    tokens = tokens_of(21)  # the last of three batches is filled up
    task = trainer.supervised(SimpleNamespace(init=scaling, apply=scaled), loss, optax.sgd(1.0))
    state = task.init(jax.random.key(0), tokens.example)
    scores = trainer.evaluate(state, trainer.evaluation(task.measure, tokens))
    whole = {name: jnp.asarray(array) for name, array in tokens.arrays.items()}
    entropy, count = losses.language_modeling(whole["inputs"], whole)["loss"]
    aside = spread(whole["inputs"], whole)["loss"]
    wanted = np.average(entropy + 0.5 * aside, weights=count)
    assert scores["val/loss"] == pytest.approx(wanted, rel=1e-5)
    assert scores["val/language_modeling_loss"] == pytest.approx(
        np.average(entropy, weights=count), rel=1e-5
    )
    parts = scores["val/language_modeling_loss"] + 0.5 * scores["val/spread_loss"]
    assert scores["val/loss"] == pytest.approx(parts, rel=1e-5)
    assert scores["val/perplexity"] == pytest.approx(np.exp(scores["val/language_modeling_loss"]))


def test_accumulated_gradients_of_a_sum_with_tokens_equal_those_of_the_batch():
    loss = total(losses.language_modeling, (spread, lambda step: 0.5 * (step + 1)))
    batch = tokens_of(8).example
    found = []
    for accumulate in (1, 2):
        task = trainer.supervised(
            SimpleNamespace(init=scaling, apply=scaled),
            loss,
            optax.sgd(1.0),
            accumulate=accumulate,
        )
        state = task.init(jax.random.key(0), batch)
        found.append(jax.jit(task.gradients)(strip_host_fields(state), batch))
    chex.assert_trees_all_close(*found, rtol=1e-5)


def test_one_loss_alone_trains_to_the_same_bits(linear, digits):
    def trained(loss):
        task = trainer.supervised(linear, loss, optax.adam(1e-2))
        start = task.init(jax.random.key(0), digits[0].example)
        return trainer.fit(start, trainer.training(task.step, digits[0]), epochs=2)

    (alone, before), (summed, after) = map(trained, (losses.classification, TOTAL_OF_ONE))
    chex.assert_trees_all_equal(summed.params, alone.params)
    assert (
        after[-1]["train/loss"]
        == before[-1]["train/loss"]
        == after[-1]["train/classification_loss"]
    )


TOTAL_OF_ONE = total(losses.classification)


def test_a_schedule_follows_the_optimizers_steps(linear, digits):
    traced = []

    def fading(step):
        traced.append(step)
        return optax.linear_schedule(1.0, 0.0, 10)(step)

    loss = total(losses.classification, (large, fading))
    task = trainer.supervised(linear, loss, optax.adam(1e-3), accumulate=2)
    phase = trainer.training(task.step, digits[0])
    state = task.init(jax.random.key(0), digits[0].example)
    measured, compiled = {}, 0
    for epochs in (1, 2):  # six steps each: the second call continues the schedule
        state, history = trainer.fit(state, phase, epochs=epochs)
        measured[epochs] = history[-1]["train/large_coefficient"]
        compiled = compiled if epochs > 1 else len(traced)
    assert len(traced) == compiled
    expected = [1 - np.arange(6).mean() / 10, np.array([4, 3, 2, 1, 0, 0]).mean() / 10]
    np.testing.assert_allclose(list(measured.values()), expected, rtol=1e-5)
    scores = trainer.evaluate(state, trainer.evaluation(task.measure, digits[1]))
    assert scores["val/loss"] == pytest.approx(scores["val/classification_loss"])  # it has faded


def test_a_nested_schedule_is_found():
    inner = total((large, lambda step: 1.0 * step))
    outer = total(inner)
    chex.assert_trees_all_close(outer(OUTPUTS, {}, step=3)["loss"], 3 * jnp.array([5.0, 9.0]))
    with pytest.raises(ValueError, match=r"follow the step: call total\(...\) with step="):
        outer(OUTPUTS, {})


def test_checks_and_finalizers_of_terms_apply_to_the_sum():
    smoothed = functools.partial(losses.language_modeling, z_loss=0.0)
    loss = total(smoothed, (large, 2.0))
    means = {"loss": 9.0, "language_modeling_loss": 0.0, "large_loss": 1.0}
    assert loss.finalize(means)["perplexity"] == 1.0
    with pytest.raises(ValueError, match="must be between 0 and 1"):
        total(losses.classification).check(OUTPUTS, {"labels": np.array([0, 7])})


@pytest.mark.parametrize(
    ("terms", "kind", "said"),
    [
        ((), ValueError, "at least one loss"),
        ((large, large), ValueError, "twice"),
        (("large",), TypeError, "takes losses, or pairs"),
        (((large, -1.0),), ValueError, "finite and not negative; got -1.0"),
        (((large, float("nan")),), ValueError, "finite and not negative; got nan"),
        (((large, "1"),), TypeError, "a number or a schedule"),
        (((large, 1.0, 2.0),), TypeError, "takes losses, or pairs"),
    ],
)
def test_terms_that_cannot_be_added_are_errors(terms, kind, said):
    with pytest.raises(kind, match=said):
        total(*terms)


def test_the_error_names_two_terms_that_report_the_same():
    def other(outputs, batch):
        return large(outputs, batch)

    with pytest.raises(ValueError, match="'large' and 'other' both report 'size'"):
        total(large, other)(OUTPUTS, {})


def test_a_term_that_reports_a_name_of_the_sum_is_an_error():
    def policy(outputs, batch):
        return {"loss": outputs[:, 0], "policy_loss": outputs[:, 1]}

    with pytest.raises(ValueError, match=r"'total\(...\)' and 'policy' both report 'policy_loss'"):
        total(policy)(OUTPUTS, {})


def test_the_error_names_two_terms_that_derive_the_same():
    loss = total(losses.language_modeling, losses.captioning)
    with pytest.raises(
        ValueError, match="'language_modeling' and 'captioning' both .* 'perplexity'"
    ):
        loss.finalize({"language_modeling_loss": 1.0, "captioning_loss": 1.0})


def test_a_term_without_loss_is_an_error():
    def error(outputs, batch):
        return {"error": outputs[:, 0]}

    with pytest.raises(ValueError, match=r"'error' must return 'loss'; it returned \['error'\]"):
        total(error)(OUTPUTS, {})


def test_a_schedule_that_returns_no_scalar_is_an_error():
    with pytest.raises(ValueError, match=r"schedule of 'large' must return a scalar .* \(2,\)"):
        total((large, lambda step: jnp.ones(2)))(OUTPUTS, {}, step=0)


def test_a_loss_that_follows_the_step_keeps_its_settings():
    def scaled(outputs, batch, *, step, scale=1.0):
        return {"loss": step * scale * jnp.ones(2)}

    bound = as_loss(functools.partial(losses.Loss(scaled, takes_step=True), scale=3.0))
    chex.assert_trees_all_close(bound.at_step(2, OUTPUTS, {})["loss"], jnp.full(2, 6.0))


def test_terms_that_weigh_examples_differently_are_an_error_before_training():
    def by_example(outputs, batch):
        return {"loss": (jnp.mean(outputs**2, axis=(1, 2)), batch["sure"])}

    tokens = tokens_of(8)
    counts = np.asarray(tokens.arrays["mask"]).sum(1).astype(np.float32)
    network = SimpleNamespace(init=scaling, apply=scaled)
    task = trainer.supervised(network, total(losses.language_modeling, by_example), optax.sgd(1.0))
    for sure, fits in ((np.ones(8, np.float32), False), (counts, True)):
        source = data.Arrays(tokens.arrays | {"sure": sure}, 8)
        state = task.init(jax.random.key(0), source.example)
        for phase in trainer.training(task.step, source), trainer.evaluation(task.measure, source):
            if fits:
                phase.verify(state)
            else:
                with pytest.raises(
                    ValueError, match="in 'language_modeling' and 1 in 'by_example'"
                ):
                    phase.verify(state)
