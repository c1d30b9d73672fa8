"""Samples of a language model: of the state's parameters and key; training is not changed."""

from __future__ import annotations

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tokenizers

import hooks
import models
import trainer
from hooks.testing import check_hook
from hooks.writers.values import Text
from trainer import data, losses

pytestmark = pytest.mark.usefixtures("compiled_quickly")

LETTERS = SimpleNamespace(
    encode=lambda text: [ord(letter) - 97 for letter in text],
    decode=lambda ids: "".join(chr(97 + number) for number in ids),
)
DECODER = models.transformer(vocabulary=6, context=12, layers=1, heads=2, width=8)
TASK = trainer.supervised(DECODER, losses.language_modeling, optax.sgd(0.5), average=0.5)
ROWS = np.random.default_rng(0).integers(0, 6, (8, 6)).astype(np.int32)
TRAIN = data.Arrays({"inputs": ROWS[:, :-1], "labels": ROWS[:, 1:]}, 4)
PHASE = trainer.training(TASK.step, TRAIN)
PROMPTS = ("ab", "cdefa")


@pytest.fixture(scope="module")
def start():
    return TASK.init(jax.random.key(0), TRAIN.example)


def showing(*writers, length=5, **settings):
    return hooks.show_samples(DECODER, LETTERS, PROMPTS, *writers, length=length, **settings)


def texts(recorder):
    """Return what was written by epoch: the texts of the prompts, in order."""
    return {
        values["epoch"].done: [value.text for value in values.values() if isinstance(value, Text)]
        for _, values in recorder.written
    }


def expected(state, params, name="show_samples", stop=()):
    """Generate after both prompts with these parameters, one by one in a list."""
    prompts = [LETTERS.encode(prompt) for prompt in PROMPTS]
    key = state.key(f"hook/{name}")
    written = models.generate(DECODER, params, prompts, length=5, key=key, stop=stop)
    rows = zip(PROMPTS, written.tokens.tolist(), written.lengths.tolist(), strict=True)
    kept = [(prompt, [token for token in row[:n] if token not in stop]) for prompt, row, n in rows]
    return [prompt + LETTERS.decode(row) for prompt, row in kept]


def test_it_writes_a_text_for_each_prompt_with_the_parameters_and_key_of_the_epoch(
    start, recorder, tmp_path
):
    lines = hooks.JsonLines(tmp_path / "lines.jsonl")
    state, _ = trainer.fit(start, PHASE, epochs=2, hooks=showing(recorder, lines))
    written = texts(recorder)
    assert written[2] == expected(state, state.params)
    assert written[1] != written[2]
    records = [json.loads(line) for line in lines.path.read_text().splitlines()]
    assert [record["samples/1"] for record in records] == [written[1][1], written[2][1]]


def test_law_3_training_keeps_its_bits_and_samples_are_the_same_under_overlap_and_on_a_thread(
    start, recorder, counting_compilations
):
    alone, _ = trainer.fit(start, PHASE, epochs=3)
    chain = showing(recorder)
    shown, _ = trainer.fit(start, PHASE, epochs=3, hooks=chain)
    written = texts(recorder)
    with counting_compilations() as counts:
        trainer.fit(start, PHASE, epochs=3, hooks=chain)
    assert counts == []
    recorder.written.clear()
    ahead, _ = trainer.fit(start, PHASE, epochs=3, hooks=chain, overlap=True)
    assert texts(recorder) == written
    assert trainer.fingerprint(alone) == trainer.fingerprint(shown) == trainer.fingerprint(ahead)
    recorder.written.clear()
    trainer.fit(start, PHASE, epochs=3, hooks=hooks.background(chain))
    assert texts(recorder) == written


def test_stop_tokens_end_a_sample_and_are_not_shown(start, recorder):
    showing(recorder, stop=range(3))(start, {})
    wanted = expected(start, start.params, stop=range(3))
    assert texts(recorder)[0] == wanted
    assert min(map(len, wanted)) < 5 + len(PROMPTS[1])


def test_messages_are_written_by_the_template_and_the_tokenizer_names_the_end(start, recorder):
    made = tokenizers.Tokenizer(tokenizers.models.BPE({x: n for n, x in enumerate("abcdef")}, []))
    made.add_special_tokens(["f"])
    made.decoder = tokenizers.decoders.Fuse()
    template = (
        "{% for m in messages %}{{ m.content }}f{% endfor %}{{ 'b' if add_generation_prompt }}"
    )
    opened = data.open_tokenizer(made, template=template)
    asked = [[{"role": "user", "content": text}] for text in ("a", "cde")]
    hooks.show_samples(DECODER, opened, asked, recorder, length=5)(start, {})
    key, prompts = start.key("hook/show_samples"), [[0, 5, 1], [2, 3, 4, 5, 1]]
    written = models.generate(DECODER, start.params, prompts, length=5, key=key, stop=(5,))
    rows = zip(["afb", "cdefb"], written.tokens.tolist(), written.lengths.tolist(), strict=True)
    wanted = [text + LETTERS.decode(row[:n]).replace("f", "") for text, row, n in rows]
    assert texts(recorder)[0] == wanted


def test_kept_parameters_generate_under_their_own_name(start, recorder):
    chain = hooks.chain(
        hooks.average_params(0.9),
        showing(recorder, params="average_params"),
        showing(recorder, params="average"),
    )
    state, _ = trainer.fit(start, PHASE, epochs=1, hooks=chain)
    (_, kept), (_, average) = recorder.written
    assert list(kept)[1:] == ["samples/average_params/0", "samples/average_params/1"]
    name = "show_samples/average_params"
    wanted = expected(state, state.hook_state["average_params"]["params"], name)
    assert [text.text for text in list(kept.values())[1:]] == wanted
    wanted = expected(state, state.carry["average"]["params"], "show_samples/average")
    assert len(wanted) == len(average) - 1 == 2


def test_a_frozen_base_in_the_model_state_is_read(start, recorder):
    frozen = DECODER._replace(
        apply=lambda params, base, inputs, **settings: DECODER.apply(base, {}, inputs, **settings),
        sample=lambda params, base, prompt, **settings: DECODER.sample(
            base, {}, prompt, **settings
        ),
    )
    state = start.replace(params={"a": jnp.zeros(1)}, model_state=start.params)
    hook = hooks.show_samples(frozen, LETTERS, PROMPTS, recorder, length=5)
    check_hook(hook, state, {})
    assert texts(recorder)[0] == expected(state, start.params)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"decoder": models.mlp(classes=2)}, TypeError, "show_samples samples answers from a dec"),
        ({"tokenizer": 3}, TypeError, "show_samples needs a tokenizer: .*; 3 has no encode"),
        ({"prompts": "ab"}, TypeError, "show_samples takes prompts as"),
        ({"prompts": []}, ValueError, "show_samples needs at least one prompt"),
        ({"writers": []}, ValueError, "show_samples needs a writer"),
        ({"writers": [print]}, TypeError, "show_samples takes writers"),
    ],
)
def test_what_does_not_fit_is_an_error(recorder, changes, error, said):
    given = {"decoder": DECODER, "tokenizer": LETTERS, "prompts": PROMPTS, "writers": [recorder]}
    decoder, tokenizer, prompts, writers = (given | changes).values()
    with pytest.raises(error, match=said):
        hooks.show_samples(decoder, tokenizer, prompts, *writers)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"length": 8},
            "text of 13 tokens exceeds the network's context of 12: show_samples contin",
        ),
        ({"stop": (6,)}, "stop tokens must be in the vocabulary"),
        ({"top_p": 0}, "top_p must be above 0"),
        ({"prompts": ["abz"]}, "tokens of prompts must be between 0 and 5"),
        ({"params": "swa"}, "needs the hook state of 'swa', which is not in the chain"),
    ],
)
def test_what_does_not_fit_the_network_is_an_error_before_training(start, recorder, settings, said):
    prompts = settings.pop("prompts", PROMPTS)
    hook = hooks.show_samples(DECODER, LETTERS, prompts, recorder, **{"length": 5, **settings})
    with pytest.raises(ValueError, match=said):
        trainer.fit(start, PHASE, epochs=1, hooks=hook)
    assert recorder.written == []
