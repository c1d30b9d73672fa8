"""Pairs of answers: both begin with the same prompt, and only the answers are trained on."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import trainer
from trainer import data

from .conftest import ALTERNATING, CHATML, MARKED, talk


def read(file, tokenizer, **settings):
    settings = {"batch_size": 1, "length": 60, "template": CHATML, **settings}
    return data.preferences(file, tokenizer, **settings)


def split(tokenizer, batch):
    """Return the text of each segment, and what of it is trained on."""
    found = []
    for segment in (1, 2):
        here = batch["inputs"]["segments"][0] == segment
        text = batch["inputs"]["tokens"][0][here]
        labels = batch["labels"][0][here & batch["mask"][0]]
        found.append(
            [tokenizer.decode(one.tolist(), skip_special_tokens=False) for one in (text, labels)]
        )
        assert batch["inputs"]["positions"][0][here].tolist() == list(range(here.sum()))
    return found


PAIR = {"chosen": talk("q", "good")[1:], "rejected": talk("q", "bad")[1:]}
WHOLE = {name: talk("q", *(one["content"] for one in turns)) for name, turns in PAIR.items()}


@pytest.mark.parametrize("template", [CHATML, ALTERNATING, MARKED])
@pytest.mark.parametrize(
    "example", [{"prompt": talk("q"), **PAIR}, WHOLE, {"prompt": "q", **WHOLE}]
)
def test_messages_of_every_form_give_the_same_pair(lines, model, tokenizer, template, example):
    batch = read(lines(example), model(), template=template).example
    (one, chosen), (other, rejected) = split(tokenizer, batch)
    assert (chosen.strip()[:4], rejected.strip()[:3]) == ("good", "bad")
    prompt = one[: one.index("good")]
    assert other.startswith(prompt + "bad")
    assert batch["inputs"]["tokens"].shape == (1, 120)
    assert np.flatnonzero(batch["inputs"]["segments"][0] == 2)[0] == 60


def test_texts(lines, model, tokenizer):
    example = {"prompt": "q: ", "chosen": "good", "rejected": "bad", "score": 3}
    batch = read(lines(example), model(), template=None).example
    assert split(tokenizer, batch) == [["q: good", "good</s>"], ["q: bad", "bad</s>"]]


def test_earlier_answers_of_the_prompt_are_not_trained_on(lines, tokenizer):
    example = {"chosen": talk("a", "b", "c", "good"), "rejected": talk("a", "b", "c", "bad")}
    (_, chosen), (_, rejected) = split(tokenizer, read(lines(example), tokenizer).example)
    assert (chosen, rejected) == ("good<|im_end|>\n", "bad<|im_end|>\n")


def test_pairs_are_cut_or_dropped_and_counted(lines, model):
    short = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    longer = {"prompt": "q", "chosen": "good" * 9, "rejected": "bad"}
    prompt = {"prompt": "q" * 30, "chosen": "good", "rejected": "bad"}
    file = lines(short, longer, prompt)
    cut = read(file, model(), length=20, template=None)
    assert (cut.counts.read, cut.counts.cut, cut.counts.dropped, cut.size) == (3, 1, 1, 2)
    dropped = read(file, model(), length=20, template=None, too_long="drop")
    assert (dropped.counts.cut, dropped.counts.dropped, dropped.size) == (0, 2, 1)


def test_a_pair_without_a_preference_is_dropped(lines, model):
    pairs = [
        {"prompt": "q", "chosen": "same", "rejected": "same"},
        {"prompt": "q", "chosen": "s" * 9, "rejected": "s" * 8 + "t"},  # the same in 8 tokens
        {"prompt": "q", "chosen": "s", "rejected": "t"},
    ]
    source = read(lines(*pairs), model(), length=8, template=None)
    assert (source.counts.read, source.counts.dropped, source.size) == (3, 2, 1)
    longer = read(lines(*pairs), model(), length=20, template=None)
    assert (longer.counts.dropped, longer.size) == (1, 2)


def test_further_arrays_of_the_rows_come_with_them(lines, model):
    pairs = [{"prompt": "q", "chosen": "good" * n, "rejected": "bad"} for n in range(1, 5)]
    source = read(lines(*pairs), model(), template=None, batch_size=2)
    known = np.arange(8, dtype=np.float32).reshape(4, 2)
    more = dataclasses.replace(source, arrays={"reference": known})
    batches = [*more]
    np.testing.assert_array_equal([batch["reference"] for batch in batches], known.reshape(2, 2, 2))
    np.testing.assert_array_equal(batches[1]["labels"], [*source][1]["labels"])
    other = dataclasses.replace(source, arrays={"reference": known + 1})
    found = [one.training_rows.content_hash.tolist() for one in (source, more, other)]
    assert found[0] != found[1] == found[2]  # values that were computed may differ in rounding
    with pytest.raises(ValueError, match="reference must have an entry for each of 4 rows; got 3"):
        dataclasses.replace(source, arrays={"reference": known[:3]})


def test_a_reference_is_kept_with_the_rows(lines, model):
    pairs = [{"prompt": "q", "chosen": "a" * n, "rejected": "b"} for n in (1, 5, 9)]
    source = read(lines(*pairs), model(), batch_size=2, length=20, template=None)
    even = SimpleNamespace(
        init=lambda key, x: ({}, {}),
        apply=lambda params, model_state, x, *, key, train: (
            jnp.zeros((*x["tokens"].shape, 4096)),
            model_state,
        ),
    )
    known = trainer.add_reference(source, even, {})
    places = source.example["inputs"]["segments"], source.example["mask"]
    answers = [((places[0] == n) & places[1]).sum(-1) for n in (1, 2)]
    np.testing.assert_allclose(
        known.example["reference"], -np.log(4096) * np.stack(answers, axis=-1), rtol=1e-6
    )
    assert [len(batch["reference"]) for batch in known] == [2, 1]
    assert known.counts == source.counts
    state = trainer.TrainState.create(params={}, rng=jax.random.key(0))
    known.verify(state, lambda state, batch: batch["reference"])


@pytest.mark.parametrize(
    ("example", "said"),
    [
        ({"prompt": "a", "choosen": "b", "rejected": "c"}, "Did you mean 'chosen'"),
        ({"chosen": "b", "rejected": "c"}, 'texts needs "prompt"'),
        ({"chosen": talk("a"), "rejected": talk("b")}, "begin with the same messages .* share 0"),
        ({"chosen": talk("a", "b"), "rejected": talk("a", "b")}, "end differently.* share 2 of 2"),
        (
            {"prompt": talk("a"), "chosen": "b", "rejected": "c"},
            "chosen must be a list of messages",
        ),
        ({"prompt": 3, "chosen": "b", "rejected": "c"}, "prompt must be a text; got 3"),
    ],
)
def test_a_bad_pair_is_named_by_its_line(lines, tokenizer, example, said):
    with pytest.raises(ValueError, match=f"examples.jsonl, line 1: .*{said}"):
        read(lines(example), tokenizer)
