"""Roles that a file misspells or makes up, and files without an answer."""

import logging
import re

import pytest

from trainer import data

from .conftest import CHATML, talk

SETTINGS = {"batch_size": 1, "length": 100, "template": CHATML}


def _rename(role, *texts):
    """A conversation in which the assistant has another role."""
    return [{**one, "role": role} if one["role"] == "assistant" else one for one in talk(*texts)]


def test_a_misspelt_role_is_an_error_that_names_the_line(lines, tokenizer):
    file = lines({"messages": talk("a", "b")}, {"messages": _rename("Assistent", "a", "b")})
    said = (
        r"examples.jsonl, line 2: the role 'Assistent' of message 2 is not known. Did you mean "
        r"'assistant'\? Known are system, developer, user, assistant, tool, and what the chat"
    )
    with pytest.raises(ValueError, match=said):
        data.chat(file, tokenizer, **SETTINGS)
    pair = {
        "prompt": talk("a"),
        "chosen": talk("", "b")[1:],
        "rejected": _rename("asistant", "", "c")[1:],
    }
    with pytest.raises(ValueError, match="line 1: the role 'asistant' of message 3 is not known"):
        data.preferences(lines(pair), tokenizer, **SETTINGS)


def test_a_role_that_the_template_names_is_known(lines, tokenizer, caplog):
    file = lines({"messages": [*talk("a", "b"), {"role": "users", "content": "c"}]})
    named = CHATML + "{% if 'users' == '' %}{% endif %}"
    data.chat(file, tokenizer, **{**SETTINGS, "template": named})
    assert "the role" not in caplog.text


def test_other_roles_are_listed_in_a_warning(lines, tokenizer, caplog):
    caplog.set_level(logging.INFO)
    critic = {"role": "critic", "content": "c"}
    file = lines(
        {"messages": talk("a", "b")},
        {"messages": [*talk("a", "b"), critic]},
        {"messages": [*talk("a", "b"), critic, critic]},
    )
    source = data.chat(file, tokenizer, **SETTINGS)
    (said,) = [message for message in caplog.messages if "critic" in message]
    assert re.search(r"the role 'critic', first in .*examples.jsonl, line 2, is neither", said)
    assert source.counts.unanswered == 0


def test_examples_without_an_answer_are_counted_and_reported(lines, tokenizer, caplog):
    file = lines(
        {"messages": talk("a", "b")},
        {"messages": talk("a")},
        {"messages": _rename("critic", "a", "b")},
        {"prompt": "a", "completion": ""},
        {"messages": talk("a" * 200, "b")},  # cut, and so not trained on
    )
    source = data.chat(file, tokenizer, **SETTINGS)
    assert (source.counts.unanswered, source.counts.untrained) == (3, 3)
    assert "3 of 5 examples of" in caplog.text
    assert "have no answer" in caplog.text
    caplog.clear()
    assert data.chat(file, tokenizer, train_on="all", **SETTINGS).counts.unanswered == 0
    assert "have no answer" not in caplog.text
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    source = data.preferences(lines(pair, {**pair, "chosen": ""}), tokenizer, **SETTINGS)
    assert (source.counts.unanswered, source.counts.dropped) == (1, 1)


CAUSES = {
    "no assistant": ({"messages": _rename("critic", "a", "b")}, {}, "has the role 'assistant'$"),
    "no completion": ({"prompt": "a", "completion": ""}, {}, "completions are empty$"),
    "a long prompt": (
        {"prompt": "a" * 50, "completion": "b"},
        {"length": 20},
        "prompts leave no room for an answer: the longest example has 51 tokens; raise length, "
        "which is 20$",
    ),
    "a long answer": (
        {"prompt": "a", "completion": "b" * 50},
        {"length": 20, "too_long": "drop"},
        "answers are too long: the longest example has 51 tokens",
    ),
    "one token": ({"text": "a"}, {}, "what is left has fewer than two tokens"),
}


@pytest.mark.parametrize("name", CAUSES)
def test_a_file_without_a_trained_token_says_why(lines, tokenizer, name):
    example, settings, said = CAUSES[name]
    with pytest.raises(ValueError, match=f"token to train on; of 1 examples.*: .*{said}"):
        data.chat(lines(example), tokenizer, **{**SETTINGS, **settings})


@pytest.mark.parametrize("too_long", ["cut", "drop"])
def test_pairs_without_room_or_difference_say_why(lines, tokenizer, too_long):
    settings = {**SETTINGS, "length": 20, "too_long": too_long}
    said = {"cut": "prompts leave no room for an answer", "drop": "answers are too long"}[too_long]
    pair = {"prompt": "a" * 50, "chosen": "b", "rejected": "c"}
    with pytest.raises(ValueError, match=f"1 were dropped and 0 cut: {said}: .* 51 tokens"):
        data.preferences(lines(pair), tokenizer, **settings)
    with pytest.raises(ValueError, match="two answers that are the same$"):
        data.preferences(lines({**pair, "prompt": "a", "chosen": "c"}), tokenizer, **settings)
