"""Checks of arguments, with errors worded the same everywhere."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Mapping
from typing import Any


def require_function(who: str, thing: Any, form: str, remedy: str = "") -> None:
    """Check that an argument is a function that can be called with a number of arguments.

    A function that cannot be inspected, such as one written in C, passes.

    Args:
        who: what needs it, for the message.
        thing: the argument.
        form: how it is called, `(state, metrics) -> state`.
        remedy: what to do instead, if that is known.

    Raises:
        TypeError: it is not a function, or takes other arguments.

    >>> require_function("a step", lambda state, batch: None, "(state, batch) -> (state, metrics)")
    >>> require_function("a step", lambda state: None, "(state, batch) -> (state, metrics)")
    Traceback (most recent call last):
    TypeError: a step must be a function (state, batch) -> (state, metrics); got <lambda>(state)
    """
    is_function = callable(thing) and not isinstance(thing, type)
    if is_function and can_call_with(thing, form.partition(")")[0].count(",") + 1):
        return
    if isinstance(thing, type) and not remedy:
        remedy = f"make an instance, {thing.__name__}(...), and pass a function of it"
    raise TypeError(
        f"{who} must be a function {form}; got {describe_value(thing)}{remedy and f': {remedy}'}"
    )


def can_call_with(function: Any, count: int) -> bool:
    """Return whether a function can be called with this number of arguments."""
    signature = get_signature(function)
    try:
        if signature is not None:
            signature.bind(*[None] * count)
    except TypeError:
        return False
    return True


def get_signature(function: Any) -> inspect.Signature | None:
    """Return the signature of a function, or None if it has none."""
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return None


def require_integer(what: str, value: Any, least: int) -> int:
    """Return an argument as an int, after checking that it is a whole number of at least `least`.

    `what` names it in the message; numpy's integers are accepted.

    Raises:
        TypeError: it is not a whole number.
        ValueError: it is below the least.

    >>> require_integer("epochs", 2.0, 0)
    Traceback (most recent call last):
    TypeError: epochs must be a whole number of at least 0; got 2.0
    """
    required = f"{what} must be a whole number of at least {least}"
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{required}; got {describe_value(value)}")
    if number < least:
        raise ValueError(f"{required}; got {number}")
    return number


def require_number(what: str, value: Any) -> float:
    """Return an argument as a float; raise TypeError if it is not a number.

    >>> require_number("seconds", "1h")
    Traceback (most recent call last):
    TypeError: seconds must be a number; got '1h'
    """
    real = hasattr(type(value), "__float__") and not isinstance(value, bool)
    axes: Any = getattr(value, "shape", None)
    if not real or axes:
        raise TypeError(f"{what} must be a number; got {describe_value(value)}")
    return float(value)


def check_range(what: str, values: Any, count: int, things: str) -> None:
    """Raise ValueError if an integer is below 0, or not below the count of what it indexes.

    Args:
        what: the values are, for the message.
        values: a NumPy array.
        count: of what they index.
        things: that they index, for the message.

    >>> import numpy as np
    >>> check_range("labels", np.array([0, 3]), 3, "classes")
    Traceback (most recent call last):
    ValueError: labels must be between 0 and 2, as the network has 3 classes; got labels ...
    """
    if not values.size:
        return
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= count:
        raise ValueError(
            f"{what} must be between 0 and {count - 1}, as the network has {count} {things}; "
            f"got {what} between {low} and {high}"
        )


def describe_value(thing: Any) -> str:
    """Describe a value in a few words, without the contents of containers and arrays.

    >>> import numpy as np
    >>> (describe_value(np.ones((2, 3))), describe_value({"inputs": 1}), describe_value(dict),
    ...  describe_value("adam"))
    ('an array float64[2, 3]', 'a dict of inputs', 'the class dict', "'adam'")
    """
    if isinstance(thing, type):
        return f"the class {thing.__name__}"
    if isinstance(thing, Mapping):
        return f"a {type(thing).__name__} of {', '.join(map(str, thing)) or 'nothing'}"[:200]
    if hasattr(thing, "dtype") and hasattr(thing, "shape"):
        return f"an array {thing.dtype}{list(thing.shape)}"
    if inspect.isroutine(thing) or hasattr(thing, "__wrapped__"):
        return f"{getattr(thing, '__name__', 'a function')}{_format_signature(thing)}"[:200]
    if thing is None or isinstance(thing, str | bytes | bool | int | float | complex):
        return f"{thing!r:.100}"
    article = "an" if type(thing).__name__[0] in "AEIOU" else "a"
    return f"{article} {type(thing).__name__}"


def _format_signature(function: Any) -> str:
    """Return the arguments of a function, without their types."""
    signature = get_signature(function)
    if signature is None:
        return "(...)"
    bare = [one.replace(annotation=one.empty) for one in signature.parameters.values()]
    return str(inspect.Signature(bare))
