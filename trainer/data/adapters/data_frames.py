"""Data frames of pandas: columns as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trainer.checks.arguments import describe_value
from trainer.checks.suggestions import suggest_and_list
from trainer.data.arrays import Arrays

WHO = "data.from_pandas"


def from_pandas(
    frame: Any,
    columns: Mapping[str, str | Sequence[str]],
    *,
    batch_size: int,
    steps_per_epoch: int | None = None,
) -> Arrays:
    """Copy columns of a data frame to the device.

    A column becomes `[examples]`, and a list of columns `[examples, columns]`, of their common
    type, with float64 as float32. Categories become their codes, int32, in the order of
    `frame[column].cat.categories`.

    Args:
        frame: of pandas.
        columns: by name of an array, a column of the frame or a list of columns:
            `{"inputs": ["height", "width"], "labels": "species"}`.
        batch_size: examples per step.
        steps_per_epoch: optimizer steps per epoch of training; None: an epoch is one pass.

    Raises:
        TypeError: a column holds texts or other objects.
        ValueError: the frame lacks a column, or a value is missing.

    >>> import pandas
    >>> frame = pandas.DataFrame({"x": [0.5, 1.5], "y": [1, 2], "kind": ["b", "a"]})
    >>> frame["kind"] = frame["kind"].astype("category")
    >>> source = from_pandas(frame, {"inputs": ["x", "y"], "labels": "kind"}, batch_size=2)
    >>> source.example["inputs"].tolist(), source.example["labels"].tolist()
    ([[0.5, 1.0], [1.5, 2.0]], [1, 0])
    """
    if not hasattr(frame, "columns") or not hasattr(frame, "loc"):
        raise TypeError(f"{WHO} takes a data frame of pandas; got {type(frame).__name__}")
    if not isinstance(columns, Mapping):
        raise TypeError(
            f"{WHO} takes columns by name of an array; got {describe_value(columns)}: "
            '{"inputs": ["height", "width"], "labels": "kind"}'
        )
    arrays = {
        name: _read_column(frame, chosen)
        if isinstance(chosen, str)
        else np.stack([_read_column(frame, column) for column in chosen], axis=1)
        for name, chosen in columns.items()
    }
    return Arrays(arrays, batch_size, steps_per_epoch=steps_per_epoch)


def _read_column(frame: Any, name: str) -> np.ndarray:
    if name not in frame.columns:
        known = [column for column in frame.columns if isinstance(column, str)]
        raise ValueError(f"{WHO} needs a column {name!r}{suggest_and_list(name, known)}")
    column = frame[name]
    if missing := int(column.isna().sum()):
        raise ValueError(
            f"{WHO} needs a value in each row; column {name!r} lacks {missing} of {len(column)}: "
            "drop these rows, frame.dropna(), or fill them, frame.fillna(...)"
        )
    if hasattr(column, "cat"):
        return column.cat.codes.to_numpy(np.int32)
    array = column.to_numpy()
    if array.dtype == object and hasattr(column.dtype, "numpy_dtype"):
        array = column.to_numpy(column.dtype.numpy_dtype)  # pandas' own types of numbers
    if array.dtype.kind not in "biuf":
        raise TypeError(
            f"{WHO} needs numbers; column {name!r} holds {column.dtype}, such as "
            f"{column.iloc[0]!r:.60}: number its values before the frame is split, "
            f'frame[{name!r}] = frame[{name!r}].astype("category")'
        )
    return array.astype(np.float32) if array.dtype == np.float64 else array
