"""Train flags: the arguments that tell a module whether it trains."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable
from typing import Any

TRAIN_FLAG_NAMES = ("train", "training", "is_train", "is_training", "in_training")
"""Names of flags that are true in training."""

EVAL_FLAG_NAMES = (
    *("deterministic", "eval", "is_eval", "evaluating", "test", "testing", "is_test"),
    *("inference", "is_inference", "use_running_average"),
)
"""Names of flags that are false in training."""

AUTO = "auto"
"""Find the flags by their names."""

Flags = dict[str, Any]
"""Names of flags, with their values in training."""


def known_flags(names: Iterable[str]) -> Flags:
    """Return the names that are flags, with their values in training.

    >>> known_flags(["x", "is_training", "deterministic", "mask"])
    {'is_training': True, 'deterministic': False}
    """
    return {
        name: name in TRAIN_FLAG_NAMES
        for name in names
        if name in TRAIN_FLAG_NAMES + EVAL_FLAG_NAMES
    }


def make_flag_kwargs(flags: Flags, *, train: bool) -> Flags:
    """Return the flags as keyword arguments of a call.

    >>> make_flag_kwargs({"is_training": True, "deterministic": False}, train=False)
    {'is_training': False, 'deterministic': True}
    """
    return {name: value is train for name, value in flags.items()}


def named_flag(who: str, call: Callable[..., Any], name: str) -> Flags:
    """Return the flag that a user named, `is_training` or `not frozen`.

    Raises:
        TypeError: the call takes no keyword of this name.

    >>> named_flag("from_linen", lambda x, frozen: x, "not frozen")
    {'frozen': False}
    """
    opposite = name.startswith("not ")
    plain = name.removeprefix("not ").strip()
    parameters = inspect.signature(call).parameters
    if plain not in parameters and not _takes_any(parameters.values()):
        raise TypeError(
            f"{who}: train_flag must name a keyword of the module's __call__, such as "
            f"'is_training', or 'not frozen' for one that is false in training; got {name!r}, and "
            f"there is: {', '.join(parameters) or 'nothing'}"
        )
    return {plain: not opposite}


def find_flags(who: str, call: Callable[..., Any], train_flag: str | None) -> Flags:
    """Return the flags of a call: those found by name, the one that was named, or none.

    Raises:
        TypeError: the call takes no keyword of the name.

    >>> find_flags("from_nnx", lambda x, training: x, AUTO), find_flags("from_nnx", len, None)
    ({'training': True}, {})
    """
    if train_flag is None:
        return {}
    if train_flag == AUTO:
        return known_flags(inspect.signature(call).parameters)
    return named_flag(who, call, train_flag)


def check_call(who: str, call: Callable[..., Any], flags: Flags) -> None:
    """Check that a module can be called with its inputs and these flags.

    Raises:
        TypeError: it needs other arguments.
    """
    parameters = inspect.signature(call).parameters
    try:
        inspect.signature(call).bind(None, **{name: True for name in flags if name in parameters})
    except TypeError as error:
        raise TypeError(
            f"{who} calls module(inputs), with the flags that tell a module whether it "
            f"trains (found: {', '.join(flags) or 'none'}); its __call__ takes "
            f"({', '.join(parameters)}), which does not fit: {error}. Name a flag with another "
            "name, train_flag='learning'; join several inputs in one dict; bind the rest in a "
            "module around it"
        ) from error


def fields(module: Any) -> list[str]:
    """Return the names of the fields of a module that is a dataclass."""
    return [field.name for field in dataclasses.fields(module)]


def _takes_any(parameters: Iterable[inspect.Parameter]) -> bool:
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
