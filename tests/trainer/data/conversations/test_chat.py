"""Conversations of a file: the assistant's tokens alone are trained on, in rows and in turn."""

import json
import logging
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers import models as token_models

import hooks
import models
import trainer
from trainer import data, losses

from .conftest import ALTERNATING, CHATML, read_trained, talk

pytestmark = pytest.mark.usefixtures("compiled_quickly")

SETTINGS = {"batch_size": 1, "length": 100, "template": CHATML}


def test_the_forms_of_an_example(lines, model, tokenizer):
    examples = [
        {"messages": talk("question", "answer")},
        {"prompt": "question ", "completion": "answer"},
        {"prompt": talk("question"), "completion": talk("?", "answer")[1:]},
        {"text": "all"},
    ]
    source = data.chat(lines(*examples), model(), pack=False, **SETTINGS)
    trained = [read_trained(tokenizer, batch)[0] for batch in source]
    assert trained == ["answer<|im_end|>\n", "answer</s>", "answer<|im_end|>\n", "ll</s>"]
    tokens = [batch["inputs"]["tokens"][0] for batch in source]
    assert tokenizer.decode(tokens[1][:15].tolist()) == "question answer"
    everything = data.chat(lines(*examples[:2]), model(), pack=False, train_on="all", **SETTINGS)
    said = [read_trained(tokenizer, batch)[0] for batch in everything]
    assert said[0].startswith("user\nquestion<|im_end|>\n<|im_start|>assistant")
    assert said[1] == "uestion answer</s>"


def test_a_text_begins_with_the_tokenizers_special_tokens(lines, model):
    folder = model()
    changed = Tokenizer.from_file(str(folder / "tokenizer.json"))
    changed.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 256)]
    )
    changed.save(str(folder / "tokenizer.json"))
    batch = data.chat(lines({"text": "a"}), folder, batch_size=1, length=4).example
    assert batch["inputs"]["tokens"][0, 0] == 256
    assert batch["labels"][0, 1] == 257
    assert batch["mask"].tolist() == [[True, True, False, False]]


@given(
    st.lists(st.lists(st.text("ab é", min_size=1, max_size=9), min_size=2, max_size=4), max_size=6),
    st.booleans(),
    st.sampled_from(["cut", "drop"]),
)
def test_no_token_of_a_prompt_is_trained_on(tmp_path_factory, tokenizer, drawn, pack, too_long):
    """Users write lower-case letters and the assistant capital ones; the texts tell them apart."""
    drawn.append(["first", "second"])
    talks = [talk(*(one.upper() if n % 2 else one for n, one in enumerate(t))) for t in drawn]
    file = tmp_path_factory.mktemp("chat") / "chat.jsonl"
    file.write_text("\n".join(json.dumps({"messages": one}) for one in talks))
    source = data.chat(
        file, tokenizer, batch_size=2, length=70, template=CHATML, pack=pack, too_long=too_long
    )
    seen = ""
    for batch in source:
        seen += "".join(read_trained(tokenizer, batch))
        spoken = tokenizer.decode(batch["labels"][~batch["mask"]].tolist())
        assert not set(spoken) & set("ABÉSECOND")
    pieces = seen.replace("<|im_end|>\n", "|").replace("<|im_end|>", "|")
    assert not set(pieces) & set("abéuserassistant")
    if not source.counts.cut and not source.counts.dropped:
        answers = [m["content"] for one in talks for m in one if m["role"] == "assistant"]
        assert sorted(pieces.split("|")[:-1]) == sorted(answers)
    assert source.counts.read == len(talks)
    assert source.counts.trained == sum(int(batch["mask"].sum()) for batch in source)


def test_what_is_too_long_is_cut_or_dropped_and_counted(lines, tokenizer, caplog):
    examples = [
        {"messages": talk("a", "b")},
        {"messages": talk("a" * 60, "b")},  # its answer is past the end
        {"messages": talk("a", "b" * 60)},
    ]
    caplog.set_level(logging.INFO, "entracte")
    settings = {**SETTINGS, "length": 40}
    cut = data.chat(lines(*examples), tokenizer, **settings)
    assert cut.counts[:4] == (3, 2, 0, 1)
    assert cut.size == 3
    assert "2 examples longer than 41 tokens were cut, 0 were dropped; 1 have no" in caplog.text
    dropped = data.chat(lines(*examples), tokenizer, too_long="drop", **settings)
    assert dropped.counts[:4] == (3, 0, 2, 0)
    assert dropped.size == 1


def test_a_token_across_the_end_of_a_prompt_is_not_trained_on_and_is_said(lines, caplog):
    vocabulary = {one: n for n, one in enumerate(["a", "b", "Ġ", "Ġb"])}
    merging = Tokenizer(token_models.BPE(vocabulary, [("Ġ", "b")]))
    merging.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    examples = [{"prompt": "a ", "completion": "ba"}, {"prompt": "a", "completion": " ba"}]
    source = data.chat(lines(*examples), merging, batch_size=2, length=2, pack=False)
    assert source.example["labels"].tolist() == [[3, 0], [3, 0]]
    assert source.example["mask"].tolist() == [[False, True], [True, True]]
    assert source.counts.crossing == 1
    assert "in 1 examples of" in caplog.text
    assert "the tokenizer names no token for the end of a text" in caplog.text


def test_packing_fills_rows(lines, tokenizer):
    examples = [{"text": "a" * n} for n in (40, 30, 60, 70, 100)]
    packed = data.chat(lines(*examples), tokenizer, batch_size=1, length=99)
    assert packed.size == 3
    assert packed.example["inputs"]["segments"].max() == 2
    assert data.chat(lines(*examples), tokenizer, pack=False, batch_size=1, length=99).size == 5


def test_parts_share_the_examples(lines, tokenizer):
    file = lines(*({"text": letter * 3} for letter in "abcde"))
    parts = [
        data.chat(file, tokenizer, batch_size=1, length=5, part=part)
        for part in ((0, 0.6), (0.6, 1))
    ]
    found = [{*tokenizer.decode(b["labels"].ravel().tolist())} - {"!"} for s in parts for b in s]
    assert [set.union(*found[:2]), set.union(*found[2:])] == [{*"abc"}, {*"de"}]


BAD = {
    "no form": ({"mesages": []}, "one form; this one has 'mesages'. Did you mean 'messages'"),
    "two forms": ({"messages": talk("a", "b"), "text": "a"}, "this one has 'messages', 'text'"),
    "no message": ({"messages": []}, "messages must be a list of messages, .*; got an empty one"),
    "no content": ({"messages": [{"role": "user"}]}, "content of message 1 .* got keys role"),
    "parts": ({"messages": [{"role": "user", "content": []}]}, "must be a text; got a list"),
    "no text": ({"text": 3}, "text must be a text; got 3"),
    "a mark": ({"messages": talk("\ufdd0", "a")}, "must not hold U.FDD0"),
    "two kinds": (
        {"prompt": "a", "completion": talk("a")},
        "completion must be a text; got a list",
    ),
    "order": (
        {"messages": talk("a", "b")[::-1]},
        "given chat template fails: roles must alternate",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_example_is_named_by_its_line(lines, model, name):
    example, said = BAD[name]
    file = lines({"messages": talk("a", "b")}, example)
    with pytest.raises(ValueError, match=f"examples.jsonl, line 2: .*{said}"):
        data.chat(file, model(), **{**SETTINGS, "template": ALTERNATING})


def test_bad_settings_are_errors(lines, tokenizer, model):
    file = lines({"messages": talk("a", "b")})
    for folder in (tokenizer, model()):
        with pytest.raises(ValueError, match="line 1: .* needs a chat template .* pass template="):
            data.chat(file, folder, batch_size=1, length=9)
    for settings, said in (
        ({"train_on": "user"}, "train_on must be 'assistant' or 'all'; got 'user'"),
        ({"too_long": "split"}, "too_long must be 'cut' or 'drop'; got 'split'"),
        ({"length": 0}, "length must be a whole number of at least 1"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1"),
        ({"steps_per_epoch": 0}, "steps_per_epoch must be"),
        ({"length": 3}, "needs a token to train on; of 1 examples .* 1 cut"),
        ({"template": "{{ bos_token }}"}, "only a tokenizer_config.json names"),
    ):
        with pytest.raises(ValueError, match=said):
            data.chat(file, tokenizer, **{**SETTINGS, **settings})


BIGRAMS = SimpleNamespace(
    init=lambda key, x: ({"table": jax.random.normal(key, (260, 260))}, {}),
    apply=lambda params, model_state, x, *, key, train: (
        params["table"][x["tokens"]],
        model_state,
    ),
)
"""A model of language whose logits are a row of a table."""


def make_phase(file, tokenizer, **settings):
    task = trainer.supervised(BIGRAMS, losses.language_modeling, optax.sgd(0.1))
    settings = {"batch_size": 2, "length": 30, "steps_per_epoch": 2, **settings}
    source = data.chat(file, tokenizer, template=CHATML, **settings)
    return task.init(jax.random.key(0), source.example), trainer.training(task.step, source)


def test_law_5_a_run_resumes_at_the_next_row_and_not_with_other_data(lines, tokenizer, tmp_path):
    random = np.random.default_rng(0)
    talks = [{"messages": talk("a", "b" * int(random.integers(1, 20)))} for _ in range(9)]
    talks.append({"messages": talk("a" * 60, "b")})  # a row without a token to train on
    state, phase = make_phase(lines(*talks), tokenizer)
    straight, _ = trainer.fit(state, phase, epochs=5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(straight.params))
    place = straight.carry["position/train"]["place"].tolist()
    assert place[0] > 1  # several passes
    trainer.fit(state, phase, epochs=2, hooks=hooks.save_checkpoints(tmp_path, max_cost=None))
    saving = hooks.save_checkpoints(tmp_path, max_cost=None)
    resumed, history = trainer.fit(state, phase, epochs=5, hooks=saving)
    assert len(history) == 3
    assert trainer.fingerprint(resumed) == trainer.fingerprint(straight)
    for changed, settings in (
        (talks[1:], {}),
        (talks, {"train_on": "all"}),
        (talks, {"length": 31}),
    ):
        _, other = make_phase(lines(*changed), tokenizer, **settings)
        with pytest.raises(ValueError, match="began with other data"):
            trainer.fit(straight, other, epochs=6)


def test_a_vocabulary_that_exceeds_the_network_is_an_error_before_training(lines, tokenizer):
    talks = [{"messages": talk("a", "b")}, {"messages": talk("a", "é")}]
    small = SimpleNamespace(
        init=BIGRAMS.init, apply=lambda *a, **k: (BIGRAMS.apply(*a, **k)[0][..., :200], a[1])
    )
    task = trainer.supervised(small, losses.language_modeling, optax.sgd(0.1))
    source = data.chat(lines(*talks), tokenizer, batch_size=1, length=40, template=CHATML)
    state = task.init(jax.random.key(0), source.example)
    with pytest.raises(ValueError, match="between 0 and 199, as the network has 200 tok") as raised:
        trainer.fit(state, trainer.training(task.step, source), epochs=1)
    assert "is 259, and their tokenizer has 260: the network needs" in "".join(
        raised.value.__notes__
    )


def test_a_text_that_exceeds_the_context_is_an_error_before_training(lines, tokenizer):
    decoder = models.transformer(vocabulary=260, context=16, layers=1, heads=1, width=2)
    task = trainer.supervised(decoder, losses.language_modeling, optax.sgd(0.1))
    examples = [{"text": text} for text in ("short", "x" * 20, "brief")]
    source = data.chat(lines(*examples), tokenizer, batch_size=1, length=40, template=CHATML)
    state = task.init(jax.random.key(0), source.example)
    phase = trainer.training(task.step, source)
    with pytest.raises(ValueError, match="a text of 19 tokens exceeds the network's context of 16"):
        trainer.fit(state, phase, epochs=1)
    examples[1] = {"text": "x" * 17}
    fits = data.chat(lines(*examples), tokenizer, batch_size=1, length=40, template=CHATML)
    trainer.training(task.step, fits).verify(state)
