"""Prompts as arrays: padding, other fields, lessons, and how they are drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainer.data.prompts.left_padding import make_inputs
from trainer.rl.answering.prompt_tables import draw_prompts, tabulate_prompts

PROMPTS = {
    "short": [{"prompt": "a", "value": 1, "name": "x"}, {"prompt": [2], "value": 2, "name": "y"}],
    "long": [{"prompt": "abc", "value": 3.5, "name": "z"}],
}


def test_prompts_are_padded_on_the_left(tokenizer):
    table = tabulate_prompts(tokenizer, PROMPTS, "grpo")
    assert table.lessons == ("short", "long")
    assert table.texts == ("a", "b", "abc")
    assert table.arrays["tokens"].tolist() == [[0, 0, 1], [0, 0, 2], [1, 2, 3]]
    assert table.arrays["lesson"].tolist() == [0, 0, 1]
    assert table.counts == (2, 1)
    assert {name: x.tolist() for name, x in table.arrays["fields"].items()} == {
        "value": [1.0, 2.0, 3.5]
    }
    assert table.examples[2] == {"value": 3.5, "name": "z"}
    inputs = make_inputs(table.arrays, jnp.array([2, 0]))
    assert inputs["segments"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert inputs["positions"].tolist() == [[0, 1, 2], [0, 0, 0]]


def test_lessons_are_drawn_by_weight_and_prompts_alike(tokenizer):
    table = tabulate_prompts(tokenizer, {"x": list("abc"), "y": ["d"], "z": ["e"]}, "grpo")
    weights = jnp.array([0.75, 0.25, 0.0])
    rows = np.asarray(draw_prompts(jax.random.key(0), table.counts, weights, 4000))
    shares = np.bincount(rows, minlength=5) / 4000
    assert shares == pytest.approx([0.25, 0.25, 0.25, 0.25, 0], abs=0.03)
    assert shares[4] == 0


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ({}, "needs prompts, .*; got an empty dict"),
        ([], "needs at least one prompt; got none"),
        ({"x": ["a"], "y": []}, "needs at least one prompt of lesson 'y'"),
        ({"x/y": ["a"]}, "a lesson's name must be a word without '/'"),
        ("abc", "takes prompts as .* got 'abc'"),
        ([{"text": "a"}], r"a prompt as a dict needs 'prompt'; got \['text'\]"),
        (["a", ""], "a prompt needs at least one token"),
        ([3.5], "a prompt is a text, a list of messages, or token ids; got 3.5"),
        ([{"role": "user", "content": "a"}], "got the messages of one: put them in a list"),
        ([[{"role": "user", "content": "a"}]], "needs a tokenizer with a chat template"),
    ],
)
def test_what_is_no_prompt_is_refused(prompts, said, tokenizer):
    with pytest.raises((TypeError, ValueError), match=said):
        tabulate_prompts(tokenizer, prompts, "grpo")
