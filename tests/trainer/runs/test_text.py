"""Text of unknown origin: stored if possible, and shown without control characters."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.host.escaping import escape_text
from trainer.runs.text import LONGEST, check_name, clean, shorten_name

ANY = st.text(st.characters(exclude_categories=()))


@given(ANY)
def test_every_database_can_store_cleaned_text(text):
    cleaned = clean(text)
    assert "\0" not in cleaned
    cleaned.encode()
    assert clean(cleaned) == cleaned
    assert len(cleaned) == len(text)


@given(ANY)
def test_shown_text_moves_no_cursor_and_starts_no_line(text):
    line = escape_text(text)
    assert not {unicodedata.category(c) for c in line} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    if text.isascii() and text.isprintable():
        assert line == text


@given(ANY, ANY)
def test_short_names_of_different_names_differ(one, other):
    one, other = (clean(name) for name in (one, other))
    pad = "é" * LONGEST
    for a, b in ((one, other), (pad + one, pad + other)):
        assert (shorten_name(a) == shorten_name(b)) == (a == b)
        assert len(shorten_name(a)) <= LONGEST
        assert shorten_name(shorten_name(a)) == shorten_name(a)


@pytest.mark.parametrize(
    "name", ["digits", "a b", "2026.11.24", "'; --", "日本", "[red]", "a\u00a0b"]
)
def test_a_name_may_be_nearly_anything(name):
    assert check_name(name, "a run") == name


@pytest.mark.parametrize(
    "name",
    ["", " a", "a ", "a/b", "a\\b", "-a", ".", "..", "a\n", "\0", "\x1b[2J", "\u202e", "\ud800"]
    + ["a" * (LONGEST + 1)],
)
def test_an_invalid_name_is_refused_and_shown_escaped(name):
    with pytest.raises(ValueError, match="a run needs a name of 1 to 200") as raised:
        check_name(name, "a run")
    assert escape_text(raised.value) == str(raised.value)
