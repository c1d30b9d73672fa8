"""Placeholders for arrays that were not recorded, which raise an error when a hook uses them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import jax


class NotRecorded(LookupError):  # noqa: N818 (states what is the case, like its message)
    """A backtested hook needs what was not recorded, such as the parameters of an epoch."""


Refuse = Callable[[str], NoReturn]
"""Raises `NotRecorded`, given the name of what was used."""


class MissingArray:
    """Stands for an array: may be passed on, and has a shape and type if they are known.

    >>> def refuse(what):
    ...     raise NotRecorded(f"{what} was not recorded")
    >>> params = {"w": MissingArray("params/w", refuse)}
    >>> len(jax.tree.leaves(params))
    1
    >>> params["w"] + 1
    Traceback (most recent call last):
        ...
    hooks.backtesting.not_recorded.NotRecorded: params/w was not recorded
    """

    def __init__(self, what: str, refuse: Refuse, like: Any = None) -> None:
        self._what, self._refuse = what, refuse
        for name in ("shape", "dtype", "sharding"):
            if hasattr(like, name):
                setattr(self, name, getattr(like, name))

    def __repr__(self) -> str:
        return f"<{self._what}, not recorded>"

    def __getattr__(self, name: str) -> Any:
        if name == "unsafe_buffer_pointer":  # the loop looks for buffers in every leaf
            raise AttributeError(name)
        return self._refuse(self._what)

    __hash__ = object.__hash__


class MissingTree(MissingArray):
    """Stands for a tree of unknown structure: a hook cannot even list its leaves.

    While no hook runs, it has no leaves.
    """

    def __init__(self, what: str, refuse: Refuse, in_hook: Callable[[], bool]) -> None:
        super().__init__(what, refuse)
        self._in_hook = in_hook
        self._structure = lambda: self  # unlike the tree itself, it can be compared


def _flatten(tree: MissingTree) -> tuple[tuple[()], Callable[[], MissingTree]]:
    if tree._in_hook():
        tree._refuse(tree._what)
    return (), tree._structure


jax.tree_util.register_pytree_node(MissingTree, _flatten, lambda structure, leaves: structure())


def _refuse_operator(self: MissingArray, *operands: Any) -> NoReturn:
    self._refuse(self._what)


# Python looks these up on the class, without __getattr__.
_UNARY = "abs array bool call complex contains float getitem index int invert iter len neg pos"
_BINARY = "add and floordiv matmul mod mul or pow sub truediv xor"
_COMPARISONS = "eq ge gt le lt ne"

_REFLECTED = [f"r{name}" for name in _BINARY.split()]

for _name in [*f"{_UNARY} {_BINARY} {_COMPARISONS}".split(), *_REFLECTED]:
    setattr(MissingArray, f"__{_name}__", _refuse_operator)
