"""The worst mistakes of a split: the right examples, in order, whatever source; nothing changes."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hooks
import trainer
from hooks.testing import check_hook
from hooks.writers.values import Image, Text
from trainer import data

LABELS = np.array([0, 1, 2, 0, 1, 2, 0], np.int32)
PROBABILITIES = np.array(
    [
        [0.9, 0.05, 0.05],
        [0.6, 0.3, 0.1],  # wrong
        [0.1, 0.1, 0.8],
        [0.15, 0.8, 0.05],  # wrong
        [0.2, 0.6, 0.2],
        [0.05, 0.93, 0.02],  # the worst
        [0.4, 0.1, 0.5],  # wrong, but least
    ],
    np.float32,
)
PIXELS = np.arange(7 * 4, dtype=np.float32).reshape(7, 2, 2, 1)
STATE = trainer.TrainState.create(params={}, rng=jax.random.key(0))


def logits(state, batch):
    return jnp.log(batch["probabilities"])


def arrays(**more):
    return {"inputs": PIXELS, "labels": LABELS, "probabilities": PROBABILITIES} | more


SOURCES = {
    "Arrays": lambda x: data.Arrays(x, 3),  # a batch of 1 example comes last
    "MemoryMap": lambda x: data.MemoryMap(x, 2, superbatch=2),
}


def written(recorder):
    """The texts of the last record, by name, and the pictures."""
    values = recorder.written[-1][1]
    texts = {name: value.text for name, value in values.items() if isinstance(value, Text)}
    return texts, {name: v.pixels for name, v in values.items() if isinstance(v, Image)}


@pytest.mark.parametrize("kind", SOURCES)
def test_the_worst_come_first_with_their_numbers_classes_and_probabilities(kind, recorder):
    hook = hooks.show_mistakes(logits, SOURCES[kind](arrays()), recorder, count=3)
    check_hook(hook, STATE, {})
    texts, pictures = written(recorder)
    assert texts == {
        "mistakes/val/0": "example 5: class 2 (2.0%), predicted 1 (93.0%)",
        "mistakes/val/1": "example 3: class 0 (15.0%), predicted 1 (80.0%)",
        "mistakes/val/2": "example 1: class 1 (30.0%), predicted 0 (60.0%)",
    }
    wanted = (PIXELS[5] - 20) / 3
    np.testing.assert_allclose(pictures["mistakes/val/0/image"], wanted, rtol=1e-6)


def test_what_does_not_count_and_what_is_right_is_not_shown(recorder):
    weights = np.array([1, 1, 1, 0, 1, 0, 1], np.float32)
    source = data.Arrays(arrays(weights=weights, inputs=PIXELS / 28), 4)
    hooks.show_mistakes(logits, source, recorder, name="exam")(STATE, {})
    texts, pictures = written(recorder)
    assert [text.split(":")[0] for text in texts.values()] == ["example 1", "example 6"]
    assert list(texts) == ["mistakes/exam/0", "mistakes/exam/1"]
    shown = pictures["mistakes/exam/0/image"]  # from 0 to 1 already
    np.testing.assert_array_equal(shown, PIXELS[1] / 28)


def test_tokens_are_written_as_text(recorder):
    letters = SimpleNamespace(encode=str.encode, decode=lambda ids: bytes(ids).decode())
    tokens = np.array(
        [list(word.encode()) for word in ("aa", "bb", "cc", "dd", "ee", "ff", "gg")], np.int32
    )
    source = data.Arrays(arrays(inputs={"tokens": tokens}), 4)
    hooks.show_mistakes(logits, source, recorder, count=1, tokenizer=letters)(STATE, {})
    texts, pictures = written(recorder)
    assert texts["mistakes/val/0"].endswith("predicted 1 (93.0%)\nff")
    assert pictures == {}


def test_logits_that_are_not_finite_are_mistakes(recorder):
    broken = PROBABILITIES.copy()
    broken[2] = np.nan
    hooks.show_mistakes(logits, data.Arrays(arrays(probabilities=broken), 7), recorder)(STATE, {})
    assert written(recorder)[0]["mistakes/val/0"].startswith("example 2: class 2 (nan%)")


@pytest.mark.parametrize(
    ("outputs", "more", "says"),
    [
        (lambda state, batch: batch["probabilities"][:, 0], {}, r"logits \[batch, classes\]"),
        (logits, {"labels": LABELS.astype(np.float32)}, r"got .* float32\[7\]"),
    ],
)
def test_data_that_do_not_suit_are_an_error_before_training(outputs, more, says, recorder):
    hook = hooks.show_mistakes(outputs, data.Arrays(arrays(**more), 7), recorder)
    phase = trainer.Phase("noop", lambda state, data: (state, None, {}))
    with pytest.raises(ValueError, match=says):
        trainer.fit(STATE, phase, epochs=1, hooks=hook)
    assert recorder.written == []
