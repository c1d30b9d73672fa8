"""Frames of pandas as arrays on the device."""

import numpy as np
import pandas
import pytest

from trainer import data

COLUMNS = {"inputs": ["height", "count"], "labels": "kind", "targets": "height"}


@pytest.fixture
def frame():
    made = pandas.DataFrame({"height": [0.5, 1.5, 2.5], "count": [1, 2, 3], "kind": list("bab")})
    return made.astype({"kind": pandas.CategoricalDtype(["b", "a", "c"])})


def test_columns_become_arrays_and_categories_their_codes(frame):
    batch = data.from_pandas(frame, COLUMNS, batch_size=3).example
    assert {name: str(array.dtype) for name, array in batch.items()} == {
        "inputs": "float32",
        "labels": "int32",
        "targets": "float32",
    }
    np.testing.assert_array_equal(batch["inputs"], [[0.5, 1], [1.5, 2], [2.5, 3]])
    assert batch["labels"].tolist() == [0, 1, 0]


def test_pandas_own_types_of_numbers_are_numbers(frame):
    frame["count"] = frame["count"].astype("Int64")
    source = data.from_pandas(frame, {"inputs": "count"}, batch_size=3)
    assert source.example["inputs"].tolist() == [1, 2, 3]


def test_what_is_no_number_is_an_error_before_training(frame):
    with pytest.raises(ValueError, match=r"a column 'heigth'.*height"):
        data.from_pandas(frame, {"inputs": "heigth"}, batch_size=1)
    frame["name"] = ["x", "y", "z"]
    with pytest.raises(TypeError, match=r"column 'name' holds .*such as 'x'.*astype"):
        data.from_pandas(frame, {"inputs": "name"}, batch_size=1)
    frame.loc[1, "height"] = None
    with pytest.raises(ValueError, match=r"column 'height' lacks 1 of 3: drop these rows"):
        data.from_pandas(frame, COLUMNS, batch_size=1)
    with pytest.raises(TypeError, match=r"columns by name of an array; got a list: .*inputs"):
        data.from_pandas(frame, ["height"], batch_size=1)
    with pytest.raises(TypeError, match="takes a data frame of pandas; got dict"):
        data.from_pandas({"inputs": [1]}, COLUMNS, batch_size=1)
