"""Weights and masks of a batch, and class weights: every loss uses them, or raises an error."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainer import losses
from trainer.supervised.batch_means import compute_mean

pytestmark = pytest.mark.usefixtures("compiled_quickly")

RANDOM = np.random.default_rng(0)
WEIGHTS = np.array([2, 1, 0, 3], np.float32)
TOKENS = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1]])


def floats(*shape):
    return jnp.asarray(RANDOM.normal(size=shape), jnp.float32)


def classes(*shape):
    return jnp.asarray(RANDOM.integers(0, 5, shape))


CASES = {
    "classification": (floats(4, 5), {"labels": classes(4)}),
    "classification of probabilities": (
        floats(4, 5),
        {"labels": jax.nn.softmax(floats(4, 5))},
    ),
    "sequence_classification": (floats(4, 3, 5), {"labels": classes(4)}),
    "language_modeling": (floats(4, 3, 5), {"labels": classes(4, 3)}),
    "captioning": (floats(4, 3, 5), {"labels": classes(4, 3)}),
    "regression": (floats(4, 2), {"targets": floats(4, 2)}),
}


def loss_of(case):
    return losses.by_task[case.split()[0]]


def means(loss, outputs, batch):
    return {
        name: float(compute_mean(values).value) for name, values in loss(outputs, batch).items()
    }


@pytest.mark.parametrize("name", ["weights", "mask"])
@pytest.mark.parametrize("case", CASES)
def test_an_example_of_weight_two_counts_twice_and_a_masked_one_not(case, name):
    outputs, batch = CASES[case]
    times = WEIGHTS.astype(int) if name == "weights" else WEIGHTS != 0
    rows = np.repeat(np.arange(4), times)
    found = means(loss_of(case), outputs, batch | {name: jnp.asarray(times)})
    wanted = means(loss_of(case), outputs[rows], {k: v[rows] for k, v in batch.items()})
    assert found == {key: pytest.approx(value, rel=1e-5) for key, value in wanted.items()}


@pytest.mark.parametrize("case", ["language_modeling", "captioning"])
def test_tokens_have_their_own_weights(case):
    outputs, batch = CASES[case]
    weights = TOKENS * floats(4, 3) ** 2
    found = means(loss_of(case), outputs, batch | {"weights": weights})
    entropy = -jnp.take_along_axis(jax.nn.log_softmax(outputs), batch["labels"][..., None], -1)
    assert found["loss"] == pytest.approx(np.average(entropy[..., 0], weights=weights), rel=1e-5)
    both = means(loss_of(case), outputs, batch | {"weights": WEIGHTS, "mask": TOKENS})
    wanted = np.average(entropy[..., 0], weights=WEIGHTS[:, None] * TOKENS)
    assert both["loss"] == pytest.approx(wanted, rel=1e-5)


def test_targets_have_their_own_mask():
    outputs, batch = CASES["regression"]
    mask = np.array([[1, 0], [1, 1], [0, 0], [0, 1]])
    found = means(losses.regression, outputs, batch | {"mask": mask})
    error = np.asarray(outputs - batch["targets"])
    assert found["loss"] == pytest.approx((error**2)[mask == 1].mean(), rel=1e-5)
    assert found["absolute_error"] == pytest.approx(np.abs(error)[mask == 1].mean(), rel=1e-5)


@pytest.mark.parametrize(
    "case", ["classification", "sequence_classification", "language_modeling", "captioning"]
)
def test_class_weights_apply_only_to_the_loss(case):
    table = [1.0, 2.0, 0.0, 0.5, 4.0]
    outputs, batch = CASES[case]
    weighed = functools.partial(loss_of(case), class_weights=table)
    found = means(weighed, outputs, batch)
    logits = outputs[:, -1] if case == "sequence_classification" else outputs
    labels = batch["labels"]
    entropy = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1)[..., 0]
    wanted = np.average(entropy, weights=np.array(table)[labels])  # as in torch
    assert found["loss"] == pytest.approx(wanted, rel=1e-5)
    assert found["accuracy"] == pytest.approx(means(loss_of(case), outputs, batch)["accuracy"])
    for bad, said in (([1.0, 2.0], "each of 5"), ([1, 1, 1, 1, -1.0], "not negative; got -1.0")):
        with pytest.raises(ValueError, match=said):
            functools.partial(loss_of(case), class_weights=bad)(outputs, batch)


def test_probabilities_average_the_weights_of_their_classes():
    outputs, batch = CASES["classification of probabilities"]
    table = np.array([1.0, 2.0, 0.0, 0.5, 4.0])
    _, weights = losses.classification(outputs, batch, class_weights=table)["loss"]
    np.testing.assert_allclose(weights, batch["labels"] @ table, rtol=1e-6)


@pytest.mark.parametrize("name", ["weights", "mask"])
@pytest.mark.parametrize("case", CASES)
def test_weights_that_cannot_be_used_are_errors(case, name):
    outputs, batch = CASES[case]
    for wrong in (jnp.ones((4, 7)), jnp.ones(()), jnp.ones((5,)), "none"):
        with pytest.raises(ValueError, match=f"{case.split()[0]} needs {name} .*got"):
            loss_of(case)(outputs, batch | {name: wrong})


def test_a_mask_of_tokens_that_the_loss_cannot_use_is_an_error():
    with pytest.raises(ValueError, match=r"sequence_classification needs mask \[batch\] = \[4\]"):
        losses.sequence_classification(
            floats(4, 5), {"labels": classes(4), "mask": jnp.ones((4, 3))}
        )


@pytest.mark.parametrize("case", CASES)
def test_host_weights_are_checked_and_labels_without_weight_may_be_anything(case):
    outputs, batch = CASES[case]
    shape = jax.ShapeDtypeStruct((1, *outputs.shape[1:]), outputs.dtype)
    host = {k: np.array(v) for k, v in batch.items()} | {"inputs": np.zeros((4, 3), np.float32)}
    check = loss_of(case).check
    for bad in (-1.0, np.nan):
        with pytest.raises(ValueError, match="weights must be finite and not negative"):
            check(shape, host | {"weights": np.array([1, bad, 1, 1])})
    if "labels" in host and host["labels"].dtype.kind == "i":
        host["labels"][2] = -100
        with pytest.raises(ValueError, match="-100"):
            check(shape, host)
        check(shape, host | {"weights": WEIGHTS})
        found = loss_of(case)(outputs, {**host, "weights": WEIGHTS})
        assert np.isfinite(found["loss"][0]).all()
