"""A batch: arrays by name, which all have the examples as their first axis."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

Batch = dict[str, Any]
"""Named arrays `[batch, ...]`; `inputs` feeds the network. Under a name may be a dict of arrays
again, such as an image and its tokens, to any depth."""


def each(function: Callable[[Any], Any], batch: Mapping[str, Any]) -> Batch:
    """Apply a function to every array of a batch.

    >>> each(len, {"inputs": {"image": [0, 1], "tokens": [2, 3]}, "labels": [4, 5]})
    {'inputs': {'image': 2, 'tokens': 2}, 'labels': 2}
    """
    return {
        name: each(function, part) if isinstance(part, Mapping) else function(part)
        for name, part in batch.items()
    }


def named(batch: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Give every array of a batch with the name that messages call it by.

    >>> list(named({"inputs": {"image": [0, 1], "tokens": [2, 3]}, "labels": [4, 5]}))
    [('inputs/image', [0, 1]), ('inputs/tokens', [2, 3]), ('labels', [4, 5])]
    """
    for name, part in batch.items():
        if isinstance(part, Mapping):
            yield from named(part, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", part


def described(batch: Mapping[str, Any]) -> dict[str, str]:
    """Give dtype and shape of one example of each array.

    >>> described({"inputs": np.zeros((8, 28, 28), np.uint8)})
    {'inputs': 'uint8[28, 28]'}
    """
    return {
        name: f"{np.asarray(array).dtype}{list(np.shape(array)[1:])}"
        for name, array in sorted(named(batch))
    }


def examples_in(batch: Mapping[str, Any], what: str) -> int:
    """Count the examples of named arrays of equal length.

    Raises:
        ValueError: there is no array, one has no axis, the lengths differ, or there is no example.
    """
    if not _holds_arrays(batch):
        raise ValueError(
            f"{what} must be a dict of named arrays, such as inputs and labels, or of dicts of "
            f"them; got {batch!r:.100}"
        )
    arrays = dict(named(batch))
    for name, array in arrays.items():
        if np.ndim(array) == 0:
            raise ValueError(f"{what}[{name!r}] must have a leading axis of examples; got a scalar")
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"arrays of {what} must be of equal length; got {lengths}")
    count = next(iter(lengths.values()))
    if count == 0:
        raise ValueError(f"{what} must hold at least one example; got none in {sorted(lengths)}")
    return count


def _holds_arrays(batch: Any) -> bool:
    """Say whether this is a dict, and neither it nor a dict in it is empty."""
    if not isinstance(batch, Mapping) or not batch:
        return False
    return all(_holds_arrays(part) for part in batch.values() if isinstance(part, Mapping))
