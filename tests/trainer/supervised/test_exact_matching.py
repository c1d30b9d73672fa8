"""Exact match: an answer counts exactly where greedy decoding writes it, packed or not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import models
import trainer
from trainer import data, losses

pytestmark = pytest.mark.usefixtures("compiled_quickly")

PROMPT, ANSWER, ROWS = 3, 4, 6
DECODER = models.transformer(vocabulary=7, context=16, layers=1, heads=2, width=8)
TASK = trainer.supervised(DECODER, losses.language_modeling, optax.sgd(0.1))
MEASURE = trainer.exact_match(TASK.outputs)


@pytest.fixture(scope="module")
def state():
    return TASK.init(jax.random.key(3), {"inputs": jnp.zeros((1, 4), jnp.int32)})


@pytest.fixture(scope="module")
def texts(state):
    """Prompts with answers that greedy decoding writes; in two a token is changed."""
    prompts = np.random.default_rng(0).integers(0, 7, (ROWS, PROMPT)).astype(np.int32)
    written = models.generate(
        DECODER, state.params, prompts, length=ANSWER, key=jax.random.key(0), temperature=0
    )
    answers = np.array(written.tokens)
    answers[1, -1] = (answers[1, -1] + 1) % 7
    answers[4, 0] = (answers[4, 0] + 1) % 7
    return np.concatenate([prompts, answers], axis=1)


def split(texts):
    """Return inputs, labels, and the mask of the answers' labels."""
    mask = np.broadcast_to(np.arange(texts.shape[1] - 1) >= PROMPT - 1, texts[:, 1:].shape)
    return texts[:, :-1], texts[:, 1:], mask


def measured(state, arrays, batch_size):
    phase = trainer.evaluation(MEASURE, data.Arrays(arrays, batch_size))
    return trainer.evaluate(state, phase)


def test_it_is_the_share_of_answers_that_greedy_decoding_writes(state, texts):
    inputs, labels, mask = split(texts)
    arrays = {"inputs": inputs, "labels": labels, "mask": mask}
    assert measured(state, arrays, 4) == {"val/exact_match": pytest.approx(4 / 6)}


def test_each_answer_of_a_packed_row_counts_alike(state, texts):
    """Two texts in a row, or one."""
    length = texts.shape[1] - 1
    rows = {name: np.zeros((3, 2 * length), np.int32) for name in ("tokens", "segments", "labels")}
    rows |= {
        "positions": np.zeros((3, 2 * length), np.int32),
        "mask": np.zeros((3, 2 * length), bool),
    }
    inputs, labels, mask = split(texts)
    for text, row, place in ((0, 0, 0), (1, 0, 1), (2, 1, 0), (3, 2, 0), (4, 2, 1)):
        span = slice(place * length, (place + 1) * length)
        rows["tokens"][row, span], rows["labels"][row, span] = inputs[text], labels[text]
        rows["segments"][row, span], rows["positions"][row, span] = place + 1, np.arange(length)
        rows["mask"][row, span] = mask[text]
    rows["mask"][0, length : length + PROMPT] = True  # the answer before it ends at this segment
    found = measured(
        state,
        {
            "inputs": {name: rows[name] for name in ("tokens", "segments", "positions")},
            "labels": rows["labels"],
            "mask": rows["mask"],
        },
        2,
    )
    assert found == {"val/exact_match": pytest.approx(3 / 5)}


def test_without_a_mask_a_row_is_an_answer_and_without_answers_it_weighs_nothing():
    def count(state, batch):
        return jax.nn.one_hot(batch["inputs"] + 1, 9)

    inputs = np.array([[1, 2], [1, 2], [4, 5]], np.int32)
    labels = np.array([[2, 3], [2, 4], [5, 6]], np.int32)
    measure = trainer.exact_match(count)
    share, answers = measure(None, {"inputs": inputs, "labels": labels})["exact_match"]
    assert (share.tolist(), answers.tolist()) == ([1, 0, 1], [1, 1, 1])
    masked = {"inputs": inputs, "labels": labels, "mask": np.array([False, True, True])}
    share, answers = measure(None, masked)["exact_match"]
    assert (share.tolist(), answers.tolist()) == ([0, 0, 1], [0, 1, 1])


def test_what_is_no_function_or_gives_no_logits_is_an_error(state):
    with pytest.raises(TypeError, match=r"exact_match takes outputs.*pass task.outputs"):
        trainer.exact_match(TASK)
    batch = {"inputs": jnp.zeros((2, 3), jnp.int32), "labels": jnp.zeros((2, 4), jnp.int32)}
    with pytest.raises(ValueError, match="exact_match needs logits"):
        MEASURE(state, batch)
