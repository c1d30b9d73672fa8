"""Losses added up: the same as one alone, weights by the step, and what does not go together."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import trainer
from trainer import losses
from trainer.losses import total


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


def test_values_with_weights_keep_their_own_mean():
    values = total(weighted, large)(OUTPUTS, {})
    mean = (1.0 * 1 + 3.0 * 3) / 4 + (5.0 + 9.0) / 2
    assert float(values["loss"].mean()) == pytest.approx(mean)
    assert isinstance(values["weighted_loss"], tuple)


def test_weights_of_zero_give_nothing():
    def masked(outputs, batch):
        return {"loss": (outputs[:, 0], jnp.zeros(2))}

    assert total(masked)(OUTPUTS, {})["loss"].tolist() == [0.0, 0.0]


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
    fading = optax.linear_schedule(1.0, 0.0, 10)
    loss = total(losses.classification, (large, fading))
    task = trainer.supervised(linear, loss, optax.adam(1e-3), accumulate=2)
    phase = trainer.training(task.step, digits[0])
    state = task.init(jax.random.key(0), digits[0].example)
    measured = {}
    for epochs in (1, 2):  # six steps each: the second call goes on with the schedule
        state, history = trainer.fit(state, phase, epochs=epochs)
        measured[epochs] = history[-1]["train/large_coefficient"]
    expected = [1 - np.arange(6).mean() / 10, np.array([4, 3, 2, 1, 0, 0]).mean() / 10]
    np.testing.assert_allclose(list(measured.values()), expected, rtol=1e-5)
    scores = trainer.evaluate(state, trainer.evaluation(task.measure, digits[1]))
    assert scores["val/loss"] == pytest.approx(scores["val/classification_loss"])  # it has faded


def test_a_schedule_within_is_found():
    inner = total((large, lambda step: 1.0 * step))
    outer = total(inner)
    chex.assert_trees_all_close(outer.at(3)(OUTPUTS, {})["loss"], 3 * jnp.array([5.0, 9.0]))
    with pytest.raises(ValueError, match=r"follow the step: call total\(...\).at\(step\)"):
        outer(OUTPUTS, {})


def test_what_terms_carry_goes_on_working():
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
        (((large, "1"),), TypeError, "a number or a schedule"),
    ],
)
def test_what_is_no_sum_is_refused(terms, kind, said):
    with pytest.raises(kind, match=said):
        total(*terms)


def test_two_terms_that_report_the_same_are_named():
    def other(outputs, batch):
        return large(outputs, batch)

    with pytest.raises(ValueError, match="'large' and 'other' both report 'size'"):
        total(large, other)(OUTPUTS, {})
