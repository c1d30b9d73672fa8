"""Chat templates run in a sandbox, with the names that such templates use."""

import pytest

from trainer.data.conversations.chat_template import END, START, compile_template, split_marks


def render(text, messages=(), special_tokens=None, **more):
    template = compile_template(text, "the template", special_tokens or {}, "data.chat")
    return template.render(messages, variables=more.pop("variables", {}), **more)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("{{ bos_token }}a", "<s>a"),
        ("{% if tools %}a{% endif %}{% if not documents %}b{% endif %}", "b"),
        ("{{ {'a': '<é>'} | tojson }}", '{"a": "<é>"}'),
        ("  {% if true %}\na\n  {% endif %}\nb", "a\nb"),
        (
            "{% for n in range(3) %}{% if n == 1 %}{% continue %}{% endif %}{{ n }}{% endfor %}",
            "02",
        ),
        ("{% if strftime_now is defined %}today{% else %}26 Jul 2024{% endif %}", "26 Jul 2024"),
        ("a {%- generation -%} b {% endgeneration %} c", f"a{START}b {END} c"),
    ],
)
def test_what_a_template_writes(text, written):
    assert render(text, special_tokens={"bos_token": "<s>"}) == written


def test_a_template_reads_messages_the_prompt_and_tools():
    text = "{{ messages[0].name }} {{ add_generation_prompt }} {{ tools | length }}"
    written = render(text, [{"name": "a"}], prompt=True, variables={"tools": [1, 2]})
    assert written == "a True 2"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{{ raise_exception('no system role') }}", "the template fails: no system role"),
        ("{{ strftime_now('%d') }}", "'strftime_now' is undefined: it asks for today's date"),
        ("{{ messages[3].role }}", "the template fails: "),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe|not safely callable"),
    ],
)
def test_a_template_that_fails_is_an_error(text, said):
    with pytest.raises(ValueError, match=said):
        render(text, [])


def test_a_template_that_is_none_is_an_error():
    with pytest.raises(ValueError, match="the template must be a Jinja template; line 2: "):
        render("a\n{% for %}")


def test_special_tokens_must_be_known_where_they_are_read():
    with pytest.raises(ValueError, match="writes bos_token, eos_token, which only a tokenizer_co"):
        compile_template("{{ bos_token + eos_token }}", "the template", None, "data.chat")
    compile_template("{{ messages }}", "the template", None, "data.chat")


def test_marks_are_split_off():
    assert split_marks("a") == ("a", [])
    assert split_marks(f"{START}a{END}b{START}{END}{START}c{END}") == (
        "abc",
        [(0, 1), (2, 2), (2, 3)],
    )
