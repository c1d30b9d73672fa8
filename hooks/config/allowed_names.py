"""What a file may name: the hooks and writers of the public face, and those of other packages."""

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
"""The group of entry points by which other packages name their hooks and writers."""

Factory = Callable[..., Any]
"""A function that gives a hook, or a writer's class."""


def find_factory(name: str, kind: str, where: str, face: types.ModuleType) -> Factory:
    """Find the function of a hook or the class of a writer by its name.

    Args:
        name: as the file has it.
        kind: `hook` or `writer`.
        where: names the place in messages.
        face: the package `hooks`.

    Raises:
        ValueError: there is none of this name, or there are several.
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
    """List what the public face has of a kind, by name: functions that give hooks, or writers.

    >>> import hooks
    >>> list(list_factories("writer", hooks))
    ['Console', 'Database', 'JsonLines', 'MLflow', 'TensorBoard', 'WandB']
    """
    things = {name: getattr(face, name) for name in face.__all__}
    if kind == "writer":
        return {
            name: thing
            for name, thing in things.items()
            if inspect.isclass(thing) and issubclass(thing, Writer) and thing is not Writer
        }
    return {
        name: thing
        for name, thing in things.items()
        if inspect.isfunction(thing)
        and thing.__module__ != "hooks.config.hooks_by_name"
        and _makes_hooks(read_type_hints(thing).get("return"))
    }


def _makes_hooks(hint: Any) -> bool:
    """Say whether all that a function may give are hooks: `Hook`, `Chain`, `HookLike`."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return all(kind in typing.get_args(HookLike) for kind in kinds)


def read_type_hints(make: Factory) -> dict[str, Any]:
    """Give the types of a function's or a class's arguments; `object` where one is not known."""
    function: Any = inspect.unwrap(make.__init__ if inspect.isclass(make) else make)
    if not inspect.isfunction(function):
        return {}
    names = _Names({**vars(builtins), **function.__globals__})
    return typing.get_type_hints(function, names, names)


class _Names(dict[str, Any]):
    """The names that annotations use; those imported for type checkers alone stand for any object.

    `RichConsole | None` is one: what cannot be named in a file need not be known.
    """

    def __missing__(self, name: str) -> Any:
        return object
