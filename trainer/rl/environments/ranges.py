"""Ranges of an environment's params, checked before it trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from trainer.state import PyTree


class Range(NamedTuple):
    """The values that one parameter may have, both ends included."""

    least: float
    most: float
    kind: str = "number"
    """`number`, `whole number` or `truth value`."""

    def __str__(self) -> str:
        if self.kind == "truth value":
            return "a truth value"
        return f"a {self.kind} from {self.least:g} to {self.most:g}"


_KINDS = {"number": "fiu", "whole number": "iu", "truth value": "b"}


def check_ranges(
    environment: str, record: type[Any], maker: str, ranges: Mapping[str, Range], params: PyTree
) -> None:
    """Check that params are a record whose fields are scalars, each within its range.

    Args:
        environment: its name, for the message.
        record: the dataclass that params must be.
        maker: code that makes one, for the message.
        ranges: by the field's name.
        params: to check; scalars of numpy, JAX or Python.

    Raises:
        TypeError: `params` are another record.
        ValueError: a field is no scalar, of another kind, or out of range; the error names it.

    >>> @dataclasses.dataclass
    ... class Params:
    ...     rooms: int
    >>> ranges = {"rooms": Range(1, 4, "whole number")}
    >>> check_ranges("maze", Params, "Params()", ranges, Params(rooms=7))
    Traceback (most recent call last):
    ValueError: maze: `rooms` must be a whole number from 1 to 4; got 7: outside the environment's
        range; change `rooms` of the params
    """
    if not isinstance(params, record):
        raise TypeError(
            f"{environment}: params must be {record.__name__}, as `{maker}` returns them; got "
            f"{type(params).__name__}"
        )
    for field in dataclasses.fields(params):
        allowed = ranges[field.name]
        value = np.asarray(getattr(params, field.name))
        fits = value.shape == () and value.dtype.kind in _KINDS[allowed.kind]
        # A NaN fails both comparisons, so it is refused too.
        if not (fits and allowed.least <= value <= allowed.most):
            got = value.item() if value.shape == () else f"an array of shape {value.shape}"
            raise ValueError(
                f"{environment}: `{field.name}` must be {allowed}; got {got}: outside the "
                f"environment's range; change `{field.name}` of the params"
            )
