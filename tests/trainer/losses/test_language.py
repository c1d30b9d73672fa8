"""Losses of the next token, against hand-worked numbers."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer import losses
from trainer.losses.loss import as_loss

pytestmark = pytest.mark.usefixtures("compiled_quickly")

LOGITS = jnp.log(jnp.array([[[0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [0.2, 0.2, 0.6]]]))
LABELS = jnp.array([[0, 1, 2]])


def test_language_modeling_by_hand():
    (loss, tokens), (accuracy, _) = losses.language_modeling(LOGITS, {"labels": LABELS}).values()
    assert loss.tolist() == pytest.approx([-math.log(0.5 * 0.2 * 0.6) / 3], rel=1e-6)
    assert accuracy.tolist() == pytest.approx([2 / 3])
    assert tokens.tolist() == [3]


def test_masked_tokens_do_not_count_whatever_their_labels():
    batch = {"labels": jnp.array([[0, 1, -100]]), "mask": jnp.array([[True, True, False]])}
    logits = LOGITS.at[0, 2].set(jnp.nan)
    (loss, tokens), (accuracy, _) = losses.language_modeling(logits, batch).values()
    assert loss.tolist() == pytest.approx([-math.log(0.5 * 0.2) / 2], rel=1e-6)
    assert (accuracy.tolist(), tokens.tolist()) == ([0.5], [2])


def test_an_empty_sequence_has_no_weight_and_finite_gradients():
    def total(logits):
        loss, tokens = losses.language_modeling(
            logits, {"labels": LABELS, "mask": jnp.zeros((1, 3))}
        )["loss"]
        return (loss * tokens).sum()

    value, gradient = jax.value_and_grad(total)(LOGITS)
    assert float(value) == 0
    assert not np.asarray(gradient).any()


def test_z_loss_is_added_to_the_loss_and_not_to_cross_entropy():
    logits = LOGITS + 2.0  # the normaliser is exp(2)
    measured = losses.language_modeling(logits, {"labels": LABELS}, z_loss=0.1)
    plain = losses.language_modeling(logits, {"labels": LABELS})
    chex.assert_trees_all_close(measured["cross_entropy"], plain["loss"])
    gap = measured["loss"][0] - plain["loss"][0]
    assert gap.tolist() == pytest.approx([0.1 * 4], rel=1e-5)
    with pytest.raises(ValueError, match="z_loss must not be negative"):
        losses.language_modeling(logits, {"labels": LABELS}, z_loss=-1.0)


@pytest.mark.parametrize("loss", [losses.language_modeling, losses.captioning])
def test_perplexity_is_computed_from_the_mean(loss):
    finalize = as_loss(functools.partial(loss)).finalize
    assert finalize({"loss": math.log(8)})["perplexity"] == pytest.approx(8)
    assert finalize({"loss": 9.0, "cross_entropy": math.log(8)})["perplexity"] == pytest.approx(8)
    assert finalize({"loss": 1e4})["perplexity"] == math.inf
    assert math.isnan(finalize({"loss": math.nan})["perplexity"])


def test_bits_per_character_are_computed_from_the_mean():
    assert losses.language_modeling.finalize({"loss": math.log(8)})["bits_per_character"] == 3.0


@given(st.integers(0, 1000))
def test_a_caption_matches_exactly_where_every_counted_token_is_the_likeliest(seed):
    keys = jax.random.split(jax.random.key(seed), 3)
    logits = jax.random.normal(keys[0], (4, 3, 2))
    labels = jax.random.randint(keys[1], (4, 3), 0, 2)
    mask = jax.random.bernoulli(keys[2], 0.6, (4, 3))
    exact, counts = losses.captioning(logits, {"labels": labels, "mask": mask})["exact_match"]
    np.testing.assert_array_equal(counts, mask.any(-1))
    for row, (scores, wanted, counted) in enumerate(
        zip(*map(np.asarray, (logits, labels, mask)), strict=False)
    ):
        right = all(scores[t].argmax() == wanted[t] for t in range(3) if counted[t])
        assert float(exact[row]) == right


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ({}, r"reads batch\['labels'\]; there is none .there is: "),
        ({"labels": LABELS[0]}, r"integer labels \[batch, time\]; got int32\[3\]"),
        ({"labels": LABELS[:, :2]}, r"= \[1, 2, vocabulary\] from the network; got \[1, 3, 3\]"),
        ({"labels": LABELS, "mask": jnp.ones((1, 2))}, r"or \[batch, time\] = \[1, 3\], .*; got"),
    ],
)
def test_batches_that_do_not_fit_are_errors(batch, said):
    for loss in (losses.language_modeling, losses.captioning):
        with pytest.raises(ValueError, match=f"{loss.name}.*{said}"):
            loss(LOGITS, batch)


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        (
            {"labels": [[0, 3]], "inputs": [[0, 1]]},
            "labels must be between 0 and 2, as the network",
        ),
        ({"labels": [[0, 1]], "inputs": [[-1, 1]]}, "inputs must be between 0 and 2"),
    ],
)
def test_a_token_outside_the_vocabulary_is_an_error(batch, said):
    batch = {name: np.array(values) for name, values in batch.items()}
    with pytest.raises(ValueError, match=said):
        losses.language_modeling.check(LOGITS, batch)


def test_a_masked_label_may_be_anything_and_a_caption_is_checked_too():
    batch = {
        "labels": np.array([[0, 9]]),
        "mask": np.array([[1, 0]]),
        "inputs": {"image": np.zeros((1, 2, 2, 1)), "tokens": np.array([[0, 1]])},
    }
    losses.captioning.check(LOGITS, batch)
    batch["inputs"]["tokens"][0, 0] = 5
    with pytest.raises(ValueError, match="inputs must be between 0 and 2"):
        losses.captioning.check(LOGITS, batch)
