"""What is not on record: stands in the place of arrays, and says so where a hook looks at it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import jax


class NotRecorded(LookupError):  # noqa: N818 (what is the case, as its message says)
    """A hook that is replayed needs what was not recorded, such as the parameters of an epoch."""


Refuse = Callable[[str], NoReturn]
"""Given what was looked at, raises `NotRecorded`."""


class MissingArray:
    """Stands for an array, which may be passed on, and asked for shape and type where known.

    >>> def refuse(what):
    ...     raise NotRecorded(f"{what} is not on record")
    >>> params = {"w": MissingArray("params/w", refuse)}
    >>> len(jax.tree.leaves(params))
    1
    >>> params["w"] + 1
    Traceback (most recent call last):
        ...
    hooks.backtesting.not_recorded.NotRecorded: params/w is not on record
    """

    def __init__(self, what: str, refuse: Refuse, like: Any = None) -> None:
        self._what, self._refuse = what, refuse
        for name in ("shape", "dtype", "sharding"):
            if hasattr(like, name):
                setattr(self, name, getattr(like, name))

    def __repr__(self) -> str:
        return f"<{self._what}, not on record>"

    def __getattr__(self, name: str) -> Any:
        if name == "unsafe_buffer_pointer":  # the loop asks every leaf whether it has buffers
            raise AttributeError(name)
        return self._refuse(self._what)

    __hash__ = object.__hash__


class MissingTree(MissingArray):
    """Stands for a tree whose structure is not known: a hook cannot even list its leaves.

    Where no hook is under way, it has none.
    """

    def __init__(self, what: str, refuse: Refuse, under_way: Callable[[], bool]) -> None:
        super().__init__(what, refuse)
        self._under_way = under_way
        self._structure = _Structure(self)


class _Structure:
    """Tells such trees apart, which cannot be compared themselves."""

    def __init__(self, tree: MissingTree) -> None:
        self.tree = tree


def _flattened(tree: MissingTree) -> tuple[tuple[()], _Structure]:
    if tree._under_way():
        tree._refuse(tree._what)
    return (), tree._structure


jax.tree_util.register_pytree_node(
    MissingTree, _flattened, lambda structure, leaves: structure.tree
)


def _refused(self: MissingArray, *operands: Any) -> NoReturn:
    self._refuse(self._what)


# Python looks these up on the class, past __getattr__.
_ALONE = "abs array bool call complex contains float getitem index int invert iter len neg pos"
_PAIRED = "add and floordiv matmul mod mul or pow sub truediv xor"
_COMPARED = "eq ge gt le lt ne"

for _names, _form in (
    (_ALONE, "__{}__"),
    (_PAIRED, "__{}__"),
    (_PAIRED, "__r{}__"),
    (_COMPARED, "__{}__"),
):
    for _name in _names.split():
        setattr(MissingArray, _form.format(_name), _refused)
