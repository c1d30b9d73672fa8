"""Leaves that a phase passes through: found in its jaxpr, and kept out of what it computes."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import core

from trainer.checks.pytrees import has_same_structure
from trainer.placement.constraints import choose_output_shardings
from trainer.state import PyTree, TrainState

LARGE = 2**16
"""Bytes from which a leaf is passed on: fewer are copied as fast as they are sorted out."""


class LeafSplit(NamedTuple):
    """A split of a state's device part into the leaves that may change and those passed through.

    What is passed through is neither donated nor returned by a compiled function, so that it lies
    once in memory, however many states hold it.

    >>> split = LeafSplit(jax.tree.structure({"base": 0, "step": 0}), (True, False))
    >>> split.split({"base": 5, "step": 1})
    ([1], [5])
    >>> split.join([2], [5])
    {'base': 5, 'step': 2}
    """

    structure: Any
    passed: tuple[bool, ...]
    """Of each leaf, whether it is passed through."""

    def split(self, tree: PyTree) -> tuple[list[Any], list[Any]]:
        """Return the leaves of a tree that may change, and those that are passed through."""
        changing: list[Any] = []
        passed: list[Any] = []
        for leaf, passes in zip(self.structure.flatten_up_to(tree), self.passed, strict=True):
            (passed if passes else changing).append(leaf)
        return changing, passed

    def join(self, changing: Sequence[Any], passed: Sequence[Any]) -> Any:
        """Return the tree of these leaves."""
        parts = iter(changing), iter(passed)
        return self.structure.unflatten(next(parts[passes]) for passes in self.passed)

    def split_shardings(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return the options of `jax.jit` for a function whose result begins with a state, split.

        They are those of `placement.constraints.choose_output_shardings`.
        """
        return {name: (self.split(state)[0], *others) for name, (state, *others) in options.items()}


def find_passed_leaves(jaxpr: Any, state: PyTree) -> LeafSplit:
    """Find which large leaves of a state a traced function returns as they came.

    The state is the first of its arguments and of its results. JAX takes what a loop, a condition
    or an inner function passes through out of it, so that the outermost jaxpr shows it.

    >>> import jax.numpy as jnp
    >>> def step(state, x):
    ...     state, _ = jax.lax.scan(lambda s, x: ({**s, "sum": s["sum"] + x}, None), state, x)
    ...     return state
    >>> state = {"base": jnp.ones((128, 128)), "sum": jnp.float32(0), "small": jnp.ones(2)}
    >>> find_passed_leaves(jax.make_jaxpr(step)(state, jnp.ones(3)), state).passed
    (True, False, False)
    """
    leaves, structure = jax.tree.flatten(state)
    large = (math.prod(x.shape) * x.dtype.itemsize >= LARGE for x in jaxpr.in_avals)
    return LeafSplit(structure, tuple(map(operator.and_, _list_unchanged(jaxpr, leaves), large)))


def find_unchanged(function: Callable[..., PyTree], tree: PyTree, *rest: PyTree) -> PyTree:
    """Find which leaves of a tree `function(tree, *rest)` returns as they came, by tracing it.

    Returns:
        A tree of the same structure, of bools; none is True if the result is of another structure.

    >>> find_unchanged(lambda tree, x: {**tree, "sum": x}, {"base": 1.0, "sum": 0.0}, 2.0)
    {'base': True, 'sum': False}
    """
    leaves, structure = jax.tree.flatten(tree)
    jaxpr, result = jax.make_jaxpr(function, return_shape=True)(tree, *rest)
    same = has_same_structure(tree, result)
    found = _list_unchanged(jaxpr, leaves) if same else [False] * len(leaves)
    return jax.tree.unflatten(structure, found)


def _list_unchanged(jaxpr: Any, leaves: Sequence[Any]) -> list[bool]:
    """List which of the first inputs, these leaves, are the outputs at the same places."""
    given, returned = (x[: len(leaves)] for x in (jaxpr.jaxpr.invars, jaxpr.jaxpr.outvars))
    return [one is other for one, other in zip(given, returned, strict=True)]


class SplitPhase(NamedTuple):
    """A traced `(state, data) -> (state, output, packed)`, lowered by a split of the state."""

    lowered: Any
    split: LeafSplit

    def compile(self) -> Callable[[TrainState, Any], tuple[TrainState, PyTree, jax.Array]]:
        """Compile it, on any thread."""
        compiled, split = self.lowered.compile(), self.split

        def run(state: TrainState, data: Any) -> tuple[TrainState, PyTree, jax.Array]:
            changing, passed = split.split(state)
            changing, output, packed = compiled(changing, passed, data)
            return split.join(changing, passed), output, packed

        return run


def lower_split(
    traced: Any, split: LeafSplit, state: TrainState, data: Any, *, donate: bool
) -> SplitPhase:
    """Lower a traced phase so that it neither takes over nor returns what it passes through.

    The jaxpr is lowered, not the function: to trace a step twice would take long.
    """
    function, structure = core.jaxpr_as_fun(traced.jaxpr), jax.tree.structure(traced.out_info)

    def whole(changing: list[Any], passed: list[Any], data: Any) -> Any:
        leaves = function(*jax.tree.leaves((split.join(changing, passed), data)))
        after, *others = jax.tree.unflatten(structure, leaves)
        return split.split(after)[0], *others

    options = split.split_shardings(choose_output_shardings(updates_state=True))
    jitted = jax.jit(whole, donate_argnums=(0,) if donate else (), **options)
    return SplitPhase(jitted.lower(*split.split(state), data), split)
