"""What a file says, held to a type."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from trainer.configuration.typed_values import convert_value, is_supported_type


@pytest.mark.parametrize(
    ("value", "hint", "read"),
    [
        (3, int, 3),
        (3, float, 3.0),
        (1e-3, float, 1e-3),
        (True, bool, True),
        ("a", str, "a"),
        (None, int | None, None),
        ("a/b", Path, Path("a/b")),
        ("a/b", str | os.PathLike[str] | None, "a/b"),
        ("min", Literal["min", "max"], "min"),
        ([1, 2], tuple[float, float], (1.0, 2.0)),
        ([1, 2, 3], tuple[int, ...], (1, 2, 3)),
        ([], tuple[int, ...], ()),
        ([1], list[int], [1]),
        (["a"], Sequence[str], ("a",)),
        ({"a": 1}, Mapping[str, float], {"a": 1.0}),
        ({"a": [1, {}]}, Any, {"a": [1, {}]}),
        (3, Annotated[float, "metres"], 3.0),
        (3, Callable[[int], float] | float, 3.0),
    ],
)
def test_a_value_of_the_type_is_converted(value, hint, read):
    got = convert_value(value, hint, "x")
    assert got == read
    assert type(got) is type(read)


@pytest.mark.parametrize(
    ("value", "hint", "said"),
    [
        ("3", int, "x: wanted a whole number; got '3'"),
        (3.0, int, "wanted a whole number; got 3.0"),
        (True, int, "wanted a whole number; got True"),
        (True, float, "wanted a number; got True"),
        ("1e-3", float, "wanted a number; got '1e-3'"),
        (1, bool, "wanted true or false; got 1"),
        (1, str, "wanted text; got 1"),
        (None, int, "wanted a whole number; got None"),
        ("rnn", Literal["cnn", "mlp"], "wanted 'cnn' or 'mlp'; got 'rnn'"),
        (1, Literal[True, "auto"], "wanted True or 'auto'; got 1"),
        ([1], tuple[float, float], "wanted a list of 2; got"),
        ([1, "b"], tuple[int, ...], r"x\[1\]: wanted a whole number; got 'b'"),
        ({"a": "b"}, Mapping[str, int], "x.a: wanted a whole number"),
        ("abc", tuple[str, ...], "wanted a list; got 'abc'"),
        ([1], Path, "wanted a path"),
        ([], dict[str, int], "wanted a mapping"),
        ("a", float | None, "wanted a number or null; got 'a'"),
        ("f", Callable[[int], float] | float, "wanted Callable.* or a number"),
    ],
)
def test_a_value_of_another_type_is_refused(value, hint, said):
    with pytest.raises(ValueError, match=said):
        convert_value(value, hint, "x")


@pytest.mark.parametrize(
    ("hint", "held"),
    [
        (int | None, True),
        (Annotated[int, ""], True),
        (tuple[float, ...], True),
        (str | os.PathLike[str], True),
        (list, True),
        (object, False),
        (Callable[[int], int], False),
        (float | Callable[[int], int], False),
        (list[type], False),
    ],
)
def test_types_that_a_file_can_hold_are_known(hint, held):
    assert is_supported_type(hint) is held
