"""Hooks and writers that a configuration may name: the public ones and those of other packages."""

from __future__ import annotations

import builtins
import inspect
import types
import typing
from collections.abc import Callable
from importlib import metadata
from typing import Any

from hooks.combining import HookLike
from hooks.writers.writer import Writer
from trainer.checks.suggestions import suggest_and_list

GROUP = "entracte.hooks"
"""The group of entry points by which other packages register their hooks and writers."""

Factory = Callable[..., Any]
"""A function that returns a hook, or a writer's class."""


def find_factory(name: str, kind: str, where: str, face: types.ModuleType) -> Factory:
    """Find the function of a hook or the class of a writer by its name.

    The kind is `hook` or `writer`, `where` names the entry in messages, and the face is the package
    `hooks`.

    Raises:
        ValueError: no or several factories have this name.
    """
    bundled = list_factories(kind, face)
    points = {point.value: point for point in metadata.entry_points(group=GROUP, name=name)}
    if len(points) + (name in bundled) > 1:
        origins = [*(["this library"] if name in bundled else []), *points]
        raise ValueError(f"{where}: there are several of this name: {', '.join(origins)}")
    if name in bundled:
        return bundled[name]
    if points:
        return typing.cast(Factory, points.popitem()[1].load())
    names = [*bundled, *sorted({point.name for point in metadata.entry_points(group=GROUP)})]
    raise ValueError(f"{where}: there is no {kind} of this name{suggest_and_list(name, names)}")


def list_factories(kind: str, face: types.ModuleType) -> dict[str, Factory]:
    """List the public factories of a kind by name: functions that return hooks, or writer classes.

    >>> import hooks
    >>> list(list_factories("writer", hooks))
    ['Console', 'Database', 'JsonLines', 'MLflow', 'TensorBoard', 'WandB']
    """
    fits = _is_writer if kind == "writer" else _makes_hooks
    public = {name: getattr(face, name) for name in face.__all__}
    return {name: value for name, value in public.items() if fits(value)}


def _is_writer(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, Writer) and value is not Writer


def _makes_hooks(value: Any) -> bool:
    """Return whether a function returns hooks only: `Hook`, `Chain`, `HookLike`."""
    if not inspect.isfunction(value) or value.__module__ == f"{__package__}.hooks_by_name":
        return False
    hint = read_type_hints(value).get("return")
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return all(kind in typing.get_args(HookLike) for kind in kinds)


def read_type_hints(make: Factory) -> dict[str, Any]:
    """Return the types of a function's or a class's arguments; `object` for an unknown one."""
    function: Any = inspect.unwrap(make.__init__ if inspect.isclass(make) else make)
    if not inspect.isfunction(function):
        return {}
    names = _Names({**vars(builtins), **function.__globals__})
    return typing.get_type_hints(function, names, names)


class _Names(dict[str, Any]):
    """Names that annotations use; those that only type checkers import become `object`.

    `RichConsole | None` is one: a file cannot hold such an object anyway.
    """

    def __missing__(self, name: str) -> Any:
        return object
