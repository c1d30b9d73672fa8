"""Convert a file's values to types; only integers to floats and text to paths are coerced."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from trainer.host.redaction import redact_settings

_SCALARS = (bool, int, float, str, NoneType)
_PATHS = (Path, os.PathLike)
_LISTS = (tuple, list, Sequence, Iterable)
_MAPPINGS = (dict, Mapping)
_UNIONS = (Union, UnionType)


def is_supported_type(hint: Any) -> bool:
    """Return whether a file can hold all values of a type.

    >>> (is_supported_type(tuple[int, ...] | None), is_supported_type(Mapping[str, float]),
    ...  is_supported_type(type))
    (True, True, False)
    """
    origin = get_origin(hint) or hint
    if origin in (Any, Literal, *_SCALARS, *_PATHS):
        return True
    arguments = [argument for argument in get_args(hint) if argument is not Ellipsis]
    if origin is Annotated:
        return is_supported_type(arguments[0])
    return origin in (*_UNIONS, *_LISTS, *_MAPPINGS) and all(map(is_supported_type, arguments))


def convert_value(value: Any, hint: Any, where: str) -> Any:
    """Convert a value of a file to a type, or refuse it.

    Args:
        value: as read from YAML or JSON.
        hint: the type: a scalar, a path, Literal, a union, list, tuple or mapping of these.
        where: names the value in messages.

    Raises:
        ValueError: it is of another type.

    >>> convert_value([0.9, 1], tuple[float, float] | None, "betas")
    (0.9, 1.0)
    >>> convert_value("3", int, "patience")
    Traceback (most recent call last):
    ValueError: patience: wanted a whole number; got '3'
    """
    origin, arguments = get_origin(hint) or hint, get_args(hint)
    if origin is Any:
        return value
    if origin is Annotated:
        return convert_value(value, arguments[0], where)
    if origin in _UNIONS:
        for member in arguments:
            with contextlib.suppress(ValueError):
                return convert_value(value, member, where)
    elif origin is Literal:
        if any(type(value) is type(choice) and value == choice for choice in arguments):
            return value
    elif origin is float and type(value) in (int, float):
        with contextlib.suppress(OverflowError):
            return float(value)
    elif origin in _SCALARS and type(value) is origin:
        return value
    elif origin in _PATHS and type(value) is str:
        return Path(value)
    elif origin in _MAPPINGS and isinstance(value, Mapping):
        kind = arguments[1] if arguments else Any
        return {key: convert_value(inner, kind, f"{where}.{key}") for key, inner in value.items()}
    elif origin in _LISTS and isinstance(value, list | tuple):
        fixed = origin is tuple and arguments and arguments[-1] is not Ellipsis
        kinds = arguments if fixed else (arguments[:1] or (Any,)) * len(value)
        if len(kinds) == len(value):
            pairs = enumerate(zip(value, kinds, strict=True))
            read = [convert_value(inner, kind, f"{where}[{n}]") for n, (inner, kind) in pairs]
            return read if origin is list else tuple(read)
    raise ValueError(
        f"{where}: wanted {describe_type(hint)}; got {redact_settings(value, where)!r:.100}"
    )


_NAMES: dict[Any, str] = {
    **{bool: "true or false", int: "a whole number", float: "a number", str: "text"},
    **dict.fromkeys(_LISTS, "a list"),
    **dict.fromkeys(_MAPPINGS, "a mapping"),
    **dict.fromkeys(_PATHS, "a path"),
    NoneType: "null",
}


def describe_type(hint: Any) -> str:
    """Describe a type in words.

    >>> (describe_type(float | None), describe_type(Literal["min", "max"]),
    ...  describe_type(tuple[int, ...]))
    ('a number or null', "'min' or 'max'", 'a list')
    """
    origin, arguments = get_origin(hint) or hint, get_args(hint)
    if origin in _UNIONS:
        return " or ".join(dict.fromkeys(map(describe_type, arguments)))
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        return f"a list of {len(arguments)}"
    return _NAMES.get(origin, getattr(hint, "__name__", str(hint)))
