"""Losses of one class per example or sequence, against hand-worked numbers."""

import functools
import math

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from trainer import losses

pytestmark = pytest.mark.usefixtures("compiled_quickly")

LOGITS = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]))


def test_classification_by_hand():
    values = losses.classification(LOGITS, {"labels": jnp.array([0, 1])})
    chex.assert_trees_all_close(
        values,
        {
            "loss": np.array([math.log(2), math.log(5)], np.float32),
            "accuracy": np.array([1, 0], np.float32),
        },
        rtol=1e-6,
    )


def test_label_smoothing_by_hand():
    smooth = functools.partial(losses.classification, label_smoothing=0.3)
    values = smooth(LOGITS, {"labels": jnp.array([0, 1])})
    # the target of the first is (0.8, 0.1, 0.1): the true class keeps 0.7 and a third of 0.3
    by_hand = 0.8 * math.log(2) + 0.2 * math.log(4)
    assert float(values["loss"][0]) == pytest.approx(by_hand, rel=1e-6)
    assert values["accuracy"].tolist() == [1, 0]


def test_it_computes_in_float32():
    values = losses.classification(LOGITS.astype(jnp.bfloat16), {"labels": jnp.array([0, 1])})
    assert {value.dtype.name for value in values.values()} == {"float32"}


@pytest.mark.parametrize(
    ("outputs", "batch", "said"),
    [
        (LOGITS, {"label": jnp.array([0])}, r"reads batch\['labels'\]; .*Did you mean 'label'"),
        (LOGITS, {"labels": jnp.array([0.0, 1.0])}, r"classes\]; got float32\[2\]"),
        (LOGITS, {"labels": jnp.array([[0], [1]])}, r"classes\]; got int32\[2, 1\]"),
        (
            LOGITS[:1],
            {"labels": jnp.array([0, 1])},
            r"\[2, classes\] from the network; got \[1, 3\]",
        ),
        (LOGITS[0], {"labels": jnp.array([0, 1])}, r"got \[3\]"),
        ({"a": LOGITS}, {"labels": jnp.array([0, 1])}, "got dict"),
        (LOGITS.astype(int), {"labels": jnp.array([0, 1])}, "floating logits; got int32"),
    ],
)
def test_outputs_and_labels_that_do_not_fit_are_errors(outputs, batch, said):
    with pytest.raises(ValueError, match=said):
        losses.classification(outputs, batch)


@pytest.mark.parametrize("label_smoothing", [-0.1, 1.0])
def test_smoothing_out_of_range_is_an_error(label_smoothing):
    with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 1\)"):
        losses.classification(
            LOGITS, {"labels": jnp.array([0, 1])}, label_smoothing=label_smoothing
        )


def test_probabilities_as_labels_by_hand():
    values = losses.classification(LOGITS, {"labels": jnp.array([[0.75, 0.25, 0], [0, 0, 1]])})
    first = 0.75 * math.log(2) + 0.25 * math.log(4)
    assert values["loss"].tolist() == pytest.approx([first, -math.log(0.7)], rel=1e-6)
    assert values["accuracy"].tolist() == [1, 1]


def test_one_hot_probabilities_equal_classes():
    classes = jnp.array([0, 1])
    chex.assert_trees_all_close(
        losses.classification(LOGITS, {"labels": jnp.eye(3)[classes]}),
        losses.classification(LOGITS, {"labels": classes}),
        rtol=1e-6,
    )


def test_probabilities_of_other_classes_are_an_error():
    with pytest.raises(ValueError, match=r"of the network's 3 classes; got labels \[2, 4\]"):
        losses.classification(LOGITS, {"labels": jnp.ones((2, 4)) / 4})


def test_a_sequence_is_classified_by_its_last_token():
    logits = jnp.stack([LOGITS, LOGITS[::-1], LOGITS], axis=1)  # [2, 3 tokens, 3 classes]
    labels = jnp.array([0, 1])
    mask = jnp.array([[1, 1, 0], [1, 1, 1]])
    picked = jnp.stack([logits[0, 1], logits[1, 2]])
    chex.assert_trees_all_equal(
        losses.sequence_classification(logits, {"labels": labels, "mask": mask}),
        losses.classification(picked, {"labels": labels}),
    )
    chex.assert_trees_all_equal(
        losses.sequence_classification(logits, {"labels": labels}),
        losses.classification(logits[:, -1], {"labels": labels}),
    )
    chex.assert_trees_all_equal(
        losses.sequence_classification(LOGITS, {"labels": labels}),
        losses.classification(LOGITS, {"labels": labels}),
    )


def test_a_mask_of_another_shape_is_an_error():
    with pytest.raises(ValueError, match=r"mask \[batch, time\] = \[1, 2\]; got \[1, 3\]"):
        losses.sequence_classification(
            LOGITS[None], {"labels": jnp.array([0]), "mask": jnp.ones((1, 3))}
        )


def test_a_sequence_without_a_token_is_an_error():
    batch = {"labels": np.array([0, 1]), "mask": np.array([[1, 1], [0, 0]])}
    with pytest.raises(ValueError, match="needs a token in every sequence"):
        losses.sequence_classification.check(LOGITS, batch)
    batch["mask"][1, 0] = 1
    losses.sequence_classification.check(LOGITS, batch)
