"""Train flags: the arguments that tell a module whether it trains."""

from __future__ import annotations

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

_KNOWN = dict.fromkeys(TRAIN_FLAG_NAMES, True) | dict.fromkeys(EVAL_FLAG_NAMES, False)


def known_flags(names: Iterable[str]) -> Flags:
    """Return the names that are flags, with their values in training.

    >>> known_flags(["x", "is_training", "deterministic", "mask"])
    {'is_training': True, 'deterministic': False}
    """
    return {name: _KNOWN[name] for name in names if name in _KNOWN}


def make_flag_kwargs(flags: Flags, *, train: bool) -> Flags:
    """Return the flags as keyword arguments of a call.

    >>> make_flag_kwargs({"is_training": True, "deterministic": False}, train=False)
    {'is_training': False, 'deterministic': True}
    """
    return {name: value is train for name, value in flags.items()}


def find_flags(who: str, call: Callable[..., Any], train_flag: str | None) -> Flags:
    """Return the flags of a call: those found by name, the one that a user named, or none.

    Raises:
        TypeError: the call takes no keyword of the name.

    >>> find_flags("from_nnx", lambda x, training: x, AUTO), find_flags("from_nnx", len, None)
    ({'training': True}, {})
    >>> find_flags("from_linen", lambda x, frozen: x, "not frozen")
    {'frozen': False}
    """
    if train_flag is None:
        return {}
    parameters = inspect.signature(call).parameters
    if train_flag == AUTO:
        return known_flags(parameters)
    name = train_flag.removeprefix("not ").strip()
    takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    if name not in parameters and not takes_any:
        raise TypeError(
            f"{who}: train_flag must name a keyword of the module's __call__, such as "
            f"'is_training', or 'not frozen' for one that is false in training; got "
            f"{train_flag!r}, and there is: {', '.join(parameters) or 'nothing'}"
        )
    return {name: not train_flag.startswith("not ")}


def check_call(who: str, call: Callable[..., Any], flags: Flags) -> None:
    """Raise TypeError if a module cannot be called with its inputs and these flags."""
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
