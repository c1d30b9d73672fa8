"""Batches of other libraries as named arrays."""

from collections import namedtuple

import numpy as np
import pytest

from trainer.data.adapters.batch_structure import name_arrays

X, Y = np.zeros((2, 3)), np.ones(2)


@pytest.mark.parametrize(
    ("element", "names"),
    [
        (X, ["inputs"]),
        ((X,), ["inputs"]),
        ([X, Y], ["inputs", "labels"]),
        ({"inputs": {"image": X}, "labels": Y}, ["inputs", "labels"]),
        (namedtuple("Pair", "inputs targets")(X, Y), ["inputs", "targets"]),
    ],
)
def test_pairs_and_dicts_are_named_arrays(element, names):
    assert list(name_arrays(element, "a source", "")) == names


@pytest.mark.parametrize("element", [(X, Y, Y), (), "text", 3])
def test_anything_else_is_an_error_with_the_remedy(element):
    with pytest.raises(TypeError, match=r"a source takes batches that are .*got .*: name them"):
        name_arrays(element, "a source", "name them")
