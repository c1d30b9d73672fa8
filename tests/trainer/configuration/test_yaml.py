"""YAML that reads as it looks."""

import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.configuration import yaml
from trainer.configuration.yaml import dump_yaml, parse_yaml

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=8)
SURPRISING = st.sampled_from(["1e-3", "on", "no", "010", "1:30", "null", "~", "2024-01-01", "<<"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT | SURPRISING
PLAIN = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXT | SURPRISING, inner), max_leaves=8
)


@given(PLAIN)
def test_dumped_data_is_parsed_unchanged(data):
    read = parse_yaml(dump_yaml(data))
    assert read == data
    assert repr(read) == repr(data)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 1e5),
        (".5", 0.5),
        ("-2.", -2.0),
        ("-.inf", -math.inf),
        ("+7", 7),
        ("0", 0),
        ("010", "010"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("on", "on"),
        ("no", "no"),
        ("true", True),
        ("2024-01-01", "2024-01-01"),
        ("", None),
        ("~", None),
        ("'1e-3'", "1e-3"),
        ("{on: 1, no: 2}", {"on": 1, "no": 2}),
        ("[&a {x: 1}, *a]", [{"x": 1}, {"x": 1}]),
    ],
)
def test_unquoted_scalars_are_what_they_look_like(text, value):
    read = parse_yaml(text)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3", "the key 'a' is here twice\n.*line 3"),
        ("a: {b: 1, 'b': 2}", "the key 'b' is here twice"),
        ("- !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("a: [1", "it is no YAML of plain data"),
        ("? [a]\n: 1", "unhashable key"),
        ("[" * 3000, "it is no YAML of plain data"),
    ],
)
def test_anything_but_plain_data_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        parse_yaml(text)


def test_without_pyyaml_the_error_says_what_to_install(monkeypatch):
    yaml._yaml.cache_clear()
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ImportError) as raised:
        parse_yaml("a: 1")
    assert 'pip install "entracte[config]"' in raised.value.__notes__[0]


def bomb(lines, line="l{0}: &l{0} [{1}]", each="*l{0}, *l{0}, *l{0}, *l{0}"):
    """A document whose every line holds the one before four times."""
    rest = (line.format(n, each.format(n - 1)) for n in range(1, lines))
    return "\n".join([line.format(0, "1, 1"), *rest])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (bomb(40), r"with its aliases \(\*\) expanded it has \d+ values, and may have 10000"),
        (bomb(40, "l{0}: &l{0} {{a: 1, {1}}}", "<<: [*l{0}, *l{0}]"), "aliases"),
        ("a: &a [*a]", "aliases"),
        ("a: &a {b: {c: *a}}", "aliases"),
    ],
)
def test_aliases_that_expand_too_much_are_refused(text, told):
    with pytest.raises(ValueError, match=told):
        parse_yaml(text)


def test_aliases_and_large_documents_without_them_are_read():
    assert parse_yaml(bomb(3))["l2"] == 4 * [4 * [[1, 1]]]
    assert parse_yaml("a: &a {b: 1}\nc: [*a, *a]")["c"] == [{"b": 1}, {"b": 1}]
    assert parse_yaml(f"[{', '.join(map(str, range(20_000)))}]") == list(range(20_000))
