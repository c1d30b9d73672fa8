"""The options of a command, read from its signature."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any


def read_options(command: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations of a command's options, by their names on the command line.

    The fields of a dataclass are options; what else an annotation says is kept.

    >>> def fly(*, high: bool = False, with_: str = "wings") -> None: ...
    >>> read_options(fly)
    {'--high': <class 'bool'>, '--with': <class 'str'>}
    """
    annotations: dict[str, Any] = {}
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            kind = strip(parameter.annotation)
            fields = dataclasses.is_dataclass(kind)
            annotations |= (
                typing.get_type_hints(kind, include_extras=True)
                if fields
                else {parameter.name: parameter.annotation}
            )
    return {
        f"--{name.rstrip('_').replace('_', '-')}": annotation
        for name, annotation in annotations.items()
    }


def strip(annotation: Any) -> Any:
    """Return the type of an `Annotated` one."""
    return (
        typing.get_args(annotation)[0] if typing.get_origin(annotation) is Annotated else annotation
    )


def takes_one(annotation: Any) -> bool:
    """Return whether an option takes exactly one value."""
    annotation = strip(annotation)
    kind, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if kind in (typing.Union, types.UnionType):
        return all(part is types.NoneType or takes_one(part) for part in parts)
    return kind is typing.Literal or annotation in (str, int, float, Path)


def list_choices(annotation: Any) -> list[str]:
    """List the texts that an option accepts; empty if it accepts any.

    >>> list_choices(tuple[typing.Literal["csv", "json"], ...] | None)
    ['csv', 'json']
    """
    if typing.get_origin(annotation) is typing.Literal:
        return [*typing.get_args(annotation)]
    return [text for part in typing.get_args(annotation) for text in list_choices(part)]
