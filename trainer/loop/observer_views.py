"""What observers see on several processes: nothing with which the main process would wait alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax

from trainer.checks.pytrees import format_path
from trainer.phases.metrics import Metrics
from trainer.placement.gathering import gather, is_split_over_processes
from trainer.placement.split_array import SplitArray
from trainer.state import DEVICE_FIELDS, PyTree, TrainState

Gathered = Mapping[str, Any]
"""Path to what all processes gathered for an observer."""


def gather_parts(state: TrainState, parts: Iterable[str]) -> Gathered:
    """Gather the leaves of a state that are split over processes, below some paths; all call it."""
    return {path: gather(leaf) for path, leaf in list_split(state, parts).items()}


def list_split(state: TrainState, parts: Iterable[str]) -> dict[str, Any]:
    """Return the leaves of a state that are split over processes, by path, below some paths."""
    leaves = jax.tree_util.tree_leaves_with_path(state.replace(scores={}))
    split = {format_path(path): leaf for path, leaf in leaves if is_split_over_processes(leaf)}
    parts = tuple(f"{part}/" for part in parts)
    return {path: leaf for path, leaf in split.items() if f"{path}/".startswith(parts)}


class ObserverView:
    """A state and metrics as an observer may read them on the main process alone.

    An array that every process holds whole is shown as this process's copy: computing with the
    shared one would be a computation of all. An array that is split over processes is shown as it
    was gathered, or else as a `SplitArray`, which raises a clear error where it is used.

    Args:
        state: the real one.
        metrics: of the event.
        hook: name of the observer, for messages.
        gathered: of `gather_parts`.
    """

    def __init__(
        self,
        state: TrainState,
        metrics: Metrics,
        hook: str,
        gathered: Gathered | None = None,
    ) -> None:
        self._real, self._hook, self._gathered = state, hook, gathered or {}
        self._originals: dict[int, Any] = {}
        fields = {name: getattr(state, name) for name in (*DEVICE_FIELDS, "hook_state")}
        self.state = state.replace(**self._show(fields))
        self.metrics = metrics
        if metrics.output is not None:
            shown = self._show({"metrics.output": metrics.output})
            self.metrics = metrics.with_output(shown["metrics.output"])

    def _show(self, tree: dict[str, PyTree]) -> dict[str, PyTree]:
        """Replace arrays that lie on several processes; the same tree if there is none."""
        leaves = jax.tree.leaves(tree)
        if all(not isinstance(x, jax.Array) or x.is_fully_addressable for x in leaves):
            return tree
        return jax.tree_util.tree_map_with_path(self._show_leaf, tree)

    def _show_leaf(self, path: tuple[Any, ...], leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            return leaf
        if leaf.is_fully_replicated:
            shown: Any = leaf.addressable_data(0)
        else:
            name = format_path(path)
            shown = self._gathered.get(name)
            if shown is None:
                shown = SplitArray(leaf, name, self._hook)
        self._originals[id(shown)] = shown, leaf  # kept alive, so that no id is used twice
        return shown

    def restore(self, after: TrainState) -> TrainState:
        """Return what the observer returned, with the real leaves where it kept what it was shown.

        Raises:
            ValueError: its own hook state keeps an array that is split over processes.
        """
        real, shown = self._real, self.state
        if after is shown:
            return real
        fields = {}
        for name in DEVICE_FIELDS:
            kept = getattr(after, name) is getattr(shown, name)
            fields[name] = getattr(real, name) if kept else self._map_back(getattr(after, name))
        hook_state = after.hook_state
        if hook_state is shown.hook_state:
            hook_state = real.hook_state
        elif isinstance(hook_state, Mapping):
            # in the order that all processes have: JAX sorts the names
            names = [n for n in real.hook_state if n in hook_state]
            names += [n for n in hook_state if n not in real.hook_state]
            hook_state = {name: self._restore_one(name, hook_state[name]) for name in names}
        return after.replace(**fields, hook_state=hook_state)

    def _restore_one(self, name: str, own: PyTree) -> PyTree:
        if name in self.state.hook_state and own is self.state.hook_state[name]:
            return self._real.hook_state[name]
        refuse_split_arrays(self._hook, own)
        return own

    def _map_back(self, tree: PyTree) -> PyTree:
        def original(leaf: Any) -> Any:
            return self._originals.get(id(leaf), (None, leaf))[1]

        return jax.tree.map(original, tree)


def refuse_split_arrays(hook: str, hook_state: PyTree) -> None:
    """Raise ValueError if a hook state of an observer keeps an array split over processes."""
    for leaf in jax.tree.leaves(hook_state):
        if isinstance(leaf, SplitArray):
            raise ValueError(
                f"observer {hook!r} keeps {leaf!r} in its hook state, and the main process alone "
                "cannot: keep it with a control hook, or let it be gathered, "
                "hooks.observe(hook, gather=...)"
            )
