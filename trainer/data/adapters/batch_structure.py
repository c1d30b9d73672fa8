"""The structure of batches of other libraries: tuples and tensors as named arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from trainer.checks.arguments import describe_value
from trainer.data.batches import Batch, map_arrays


def name_arrays(element: Any, who: str, remedy: str) -> Batch:
    """Return a batch, or an example, of another library as named numpy arrays.

    A dict keeps its names, and so does a named tuple. A pair is `inputs` and `labels`, and a single
    array is `inputs`. `who` is the source, and `remedy` says how to name the arrays of anything
    else.

    Raises:
        TypeError: it is something else, or an array that numpy does not know.

    >>> name_arrays((np.zeros((4, 2)), [0, 1, 1, 0]), "from_torch", "")["labels"]
    array([0, 1, 1, 0])
    """
    if isinstance(element, tuple) and hasattr(element, "_asdict"):
        element = element._asdict()
    if isinstance(element, list | tuple):
        if len(element) > 2 or not element:
            raise TypeError(
                f"{who} takes batches that are dicts of arrays, pairs (inputs, labels) or inputs "
                f"alone; got a {type(element).__name__} of {len(element)}: {remedy}"
            )
        element = dict(zip(("inputs", "labels"), element, strict=False))
    if not isinstance(element, Mapping):
        if not hasattr(element, "dtype"):
            raise TypeError(
                f"{who} takes batches that are dicts of arrays, pairs (inputs, labels) or inputs "
                f"alone; got {describe_value(element)}: {remedy}"
            )
        element = {"inputs": element}
    return map_arrays(lambda array: _to_numpy(array, who), element)


def _to_numpy(array: Any, who: str) -> np.ndarray:
    try:
        return np.asarray(array)
    except (TypeError, ValueError) as error:
        error.add_note(f"{who} reads numbers that numpy can hold, such as float32 and int64")
        raise
