"""What a hook is given, compared before and after: whoever changes it in place is named at once.

A state is frozen, but the dicts and lists within it are Python's own: `state.params["bias"] = ...`
would change training behind everyone's back, also by an observer.
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
"""Of a state, what may hold containers; the other fields are arrays and a bool."""

_fields = operator.attrgetter(*FIELDS)
_flatten = jax.tree_util.default_registry.flatten


class MutationGuard:
    """Copies of the containers that a state holds, over the very same leaves.

    Python compares dicts, lists and tuples in C, and takes items that are the same object as equal:
    a comparison costs 0.3 us for 14 leaves and 3 us for 200, where flattening would cost 2 and 45.
    Flattening happens once an event, and where the quick comparison says that something differs.

    Args:
        state: that hooks are given.
        output: what they are given besides: as `metrics.output`, that of the phase before.

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
        """Take another state for what hooks are given from here on."""
        for place, field in enumerate(_fields(state)):
            if field is not self._given[place]:
                self._given[place] = field
                self._shadow[place] = _copied(field)

    def list_changes(self) -> list[str]:
        """List what was changed in place since, by paths; empty where nothing was."""
        try:
            same = self._given == self._shadow
        except Exception:  # arrays that were exchanged compare entry by entry, which has no truth
            same = False
        return [] if same else _listed(self._shadow, self._given)

    def check_unchanged(self, who: str) -> None:
        """Raise where something was changed in place.

        Args:
            who: may have done it, for the message.

        Raises:
            ValueError: something was; all paths are listed.
        """
        if lines := self.list_changes():
            raise ValueError(
                f"{who} changed in place what it was given, which is for reading only:\n  "
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


def explained(error: Exception) -> None:
    """Add to a refusal to write what a user may do instead."""
    if isinstance(error, dataclasses.FrozenInstanceError):
        error.add_note("a state is for reading only: return state.replace(stop=...) instead")
    if isinstance(error, ValueError) and "read-only" in str(error):
        error.add_note("what hooks are given is for reading only: copy it first, np.array(...)")


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
