"""What the assistant wrote is found in the text of a template, and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.conversations.assistant_spans import render_conversation
from trainer.data.conversations.chat_template import compile_template

from .conftest import ALTERNATING, CHATML, ENDS, HEADED, MARKED, REASONING, THINKING, talk

CONTENTS = st.lists(
    st.text("ab <|>\n", min_size=1, max_size=5).map(str.strip).filter(bool), min_size=2
)


def annotate(text, messages, given=0):
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    template = compile_template(text, "the template", special, "data.chat")
    found = render_conversation(template, messages, given=given, variables={})
    return found.text, [found.text[start:end] for start, end in found.spans]


@pytest.mark.parametrize("text", ENDS, ids=["ChatML", "alternating", "thinking", "marked"])
@given(contents=CONTENTS)
def test_the_spans_are_the_answers_with_their_ends(text, contents):
    contents = contents[: len(contents) // 2 * 2]
    _, found = annotate(text, talk(*contents))
    answers = [content + ENDS[text] for content in contents[1::2]]
    if text == ALTERNATING:
        answers = [" " + answer for answer in answers]
    if text == THINKING:
        answers[-1] = "<think>\n\n</think>\n\n" + answers[-1]
    assert found == answers


@pytest.mark.parametrize("text", [CHATML, ALTERNATING, THINKING, MARKED])
def test_messages_that_are_given_are_not_trained_on(text):
    messages = talk("a", "b", "c", "d")
    _, every = annotate(text, messages)
    _, last = annotate(text, messages, given=3)
    assert len(every) == 2
    assert last == every[1:]


@pytest.mark.parametrize("empty", ["", " \n"])
def test_an_empty_answer_is_its_end_alone(empty):
    """Also in the middle of a conversation, where the template leaves out empty thoughts."""
    for text in (CHATML, THINKING):
        _, found = annotate(text, talk("a", empty, "b", "c"))
        thoughts = "<think>\n\n</think>\n\n" if text == THINKING else ""
        assert found == [empty + ENDS[text], thoughts + "c" + ENDS[text]]


END = "<|im_end|>\n"
CALL = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
CALL_AFTER_THOUGHTS = {**CALL, "content": "<think>\nr\n</think>\n\n"}
CALLS_AFTER_WORDS = {**CALL, "content": "well", "tool_calls": [{"name": "f"}, {"name": "g"}]}
RESULT = {"role": "tool", "content": "t"}
EMPTY = "<think>\n\n</think>\n\n"


@pytest.mark.parametrize(
    ("messages", "answers"),
    [
        (talk("a", "<think>\nr\n</think>\n\nb", "c", "d"), ["b", EMPTY + "d"]),
        (
            talk("a", "<think>r</think>b", "a", "<think>r</think>b"),
            ["b", "<think>\nr\n</think>\n\nb"],
        ),
        (talk("a", "<think>r</think>", "c", "d"), ["", EMPTY + "d"]),
        (talk("a", "\n\n\nb", "c", " d "), ["\n\n\nb", EMPTY + " d "]),
        ([*talk("a"), CALL, RESULT, RESULT, *talk("", "b")[1:]], ["<call>f</call>", EMPTY + "b"]),
        ([*talk("a"), {**CALL, "content": ""}], [EMPTY + "<call>f</call>"]),
        (
            [*talk("a"), CALLS_AFTER_WORDS, RESULT, CALL, RESULT],
            ["well\n<call>f</call>\n<call>g</call>", "<call>f</call>"],
        ),
        (
            # Thoughts that the template wrote before the second question, and leaves out after it.
            [*talk("a"), CALL_AFTER_THOUGHTS, RESULT, *talk("", "b", "c", "d")[1:]],
            ["<call>f</call>", "b", EMPTY + "d"],
        ),
        (
            [*talk("a"), CALL_AFTER_THOUGHTS, RESULT, *talk("", "<think>s</think>b")[1:]],
            ["<think>\nr\n</think>\n\n<call>f</call>", "<think>\ns\n</think>\n\nb"],
        ),
    ],
)
def test_answers_of_a_template_that_leaves_out_thoughts(messages, answers):
    _, found = annotate(REASONING, messages)
    assert found == [answer + END for answer in answers]


def test_answers_are_found_where_a_template_strips_them():
    text, found = annotate(HEADED, talk(" a ", "\nb ", "c", " d\n"))
    assert found == ["b<|im_end|>", "d<|im_end|>"]
    assert text.startswith("<s><|user|>\n\na<|im_end|><|assistant|>\n\nb")


def test_system_and_tools_pass_through_the_template():
    messages = [
        {"role": "system", "content": "s"},
        *talk("a", "b"),
        {"role": "tool", "content": "t"},
        {"role": "assistant", "content": "c"},
    ]
    text, found = annotate(CHATML, messages)
    assert found == ["b<|im_end|>\n", "c<|im_end|>\n"]
    assert text.startswith("<|im_start|>system\ns<|im_end|>\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{{ messages | length }}" + CHATML, "writes the first 1 messages in another way"),
        (
            CHATML.replace(
                "message.content", "(message.content if loop.last or loop.first else '')"
            ),
            "message 2 in",
        ),
    ],
)
def test_a_template_that_changes_what_it_wrote_is_an_error(text, said):
    with pytest.raises(ValueError, match=f"{said}.*{{% generation %}}"):
        annotate(text, talk("a", "b", "c", "d"))
