"""Detection of in-place changes: a hook or phase that changes its arguments is named at once.

A state is frozen, but the dicts and lists within it are not: `state.params["bias"] = ...` would
change training silently, even in an observer.
"""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

import jax
import numpy as np

from trainer.checks.pytrees import describe_leaf, format_path
from trainer.state import PyTree, TrainState

FIELDS = ("params", "opt_state", "model_state", "carry", "hook_state", "scores")
"""Fields of a state that may hold containers; the others are arrays and a bool."""

_fields = operator.attrgetter(*FIELDS)
_flatten = jax.tree_util.default_registry.flatten


class MutationGuard:
    """Copies of the containers of a state, with the same leaves.

    Python compares dicts, lists and tuples in C, and takes items that are the same object as equal:
    a comparison costs 0.3 us for 14 leaves and 3 us for 200, where flattening would cost 2 and 45.
    Flattening happens once per event, and where the quick comparison finds a difference.

    Args:
        state: that hooks receive.
        output: of the phase before, which hooks receive as `metrics.output`.

    >>> import jax.numpy as jnp
    >>> state = TrainState.create(params={"w": jnp.ones(2)}, rng=jax.random.key(0))
    >>> shadow = MutationGuard(state)
    >>> state.scores["x"] = 1.0
    >>> shadow.list_changes()
    ['scores/x: float is new']
    """

    __slots__ = ("_given", "_shadow")

    def __init__(self, state: TrainState, output: PyTree = None) -> None:
        self._given: list[Any] = [*_fields(state), output]
        self._shadow: list[Any] = _copied(self._given)

    def follow(self, state: TrainState) -> None:
        """Continue with another state, which hooks receive from here on."""
        for place, field in enumerate(_fields(state)):
            if field is not self._given[place]:
                self._given[place] = field
                self._shadow[place] = _copied(field)

    def list_changes(self) -> list[str]:
        """List the in-place changes by path; empty if there are none."""
        try:
            same = self._given == self._shadow
        except Exception:  # replaced arrays compare entry by entry, which is no bool
            same = False
        return [] if same else _listed(self._shadow, self._given)

    def check_unchanged(self, who: str) -> None:
        """Raise ValueError with all paths if something was changed in place; `who` could."""
        if lines := self.list_changes():
            raise ValueError(
                f"{who} changed in place the arguments that it may only read:\n  "
                + "\n  ".join(lines)
                + "\nReturn another state instead, such as "
                'state.replace(scores={**state.scores, "name": 1.0})'
            )


def read_only(tree: PyTree) -> None:
    """Forbid writing to the numpy arrays of a tree."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, np.ndarray):
            leaf.flags.writeable = False
            if type(leaf) is not np.ndarray:
                read_only(getattr(leaf, "values", None))  # of each member of a population


def add_write_remedy(error: Exception) -> None:
    """Add to a refused write what a user can do instead."""
    if isinstance(error, dataclasses.FrozenInstanceError):
        error.add_note("a state is read-only: return state.replace(stop=...) instead")
    if isinstance(error, ValueError) and "read-only" in str(error):
        error.add_note("the arguments of hooks are read-only: copy first, np.array(...)")


def _copied(tree: PyTree) -> PyTree:
    leaves, structure = _flatten(tree)
    return structure.unflatten(leaves)


def _listed(before: list[Any], after: list[Any]) -> list[str]:
    lines = []
    for field, was, now in zip((*FIELDS, "metrics.output"), before, after, strict=True):
        old, new = _by_path(field, was), _by_path(field, now)
        lines += [
            f"{path}: {describe_leaf(old[path])} is missing" for path in old if path not in new
        ]
        lines += [f"{path}: {describe_leaf(new[path])} is new" for path in new if path not in old]
        lines += [
            f"{path}: {describe_leaf(old[path])} was replaced"
            for path in old
            if path in new and old[path] is not new[path]
        ]
    return lines


def _by_path(field: str, tree: PyTree) -> dict[str, Any]:
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    return {f"{field}/{format_path(path)}".rstrip("/"): leaf for path, leaf in pairs}
