"""The structure and buffers of a state: what a phase must keep, and which arrays it may donate."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from trainer.checks.pytrees import has_same_structure, list_differences, map_key_data
from trainer.placement.constraints import choose_output_shardings
from trainer.state import DEVICE_FIELDS, PyTree, TrainState, attach_host_fields, strip_host_fields


def check_structure(before: TrainState, after: Any, who: str) -> TrainState:
    """Check, while tracing, that a phase kept the state's structure; strip weak types.

    Raises:
        TypeError: the result is not a state.
        ValueError: a leaf changed its shape or dtype; all are listed.
    """
    if not isinstance(after, TrainState):
        raise TypeError(f"{who} must return a TrainState first; got {type(after).__name__}")
    after = strip_host_fields(after)
    if lines := list_differences(before, after):
        raise ValueError(
            f"{who} must keep the structure, shapes and dtypes of the state:\n  "
            + "\n  ".join(lines)
        )
    return jax.tree.map(_strong, after)


def _strong(leaf: jax.Array) -> jax.Array:
    weak = jnp.issubdtype(leaf.dtype, np.number) and getattr(leaf, "weak_type", False)
    return lax.convert_element_type(leaf, leaf.dtype) if weak else leaf


def copy_state(state: TrainState) -> TrainState:
    """Copy every leaf of the device part, so that donating it leaves the caller's arrays alone.

    The leaves become those of `make_arrays`.
    """
    return copy_shared_leaves(make_arrays(state), state)


def make_arrays(state: TrainState) -> TrainState:
    """Make all leaves of the device part strongly typed jax arrays; those that are one stay.

    Python numbers, numpy arrays and weakly typed ones are copied. `stop`, an array after jit or
    vmap, becomes a bool again.
    """
    host = state if type(state.stop) is bool else state.replace(stop=bool(state.stop))

    def make_array(leaf: Any) -> jax.Array:
        if not isinstance(leaf, jax.Array):
            return _strong(jnp.array(leaf))
        return _strong(_copy(leaf)) if getattr(leaf, "weak_type", False) else leaf

    return attach_host_fields(jax.tree.map(make_array, strip_host_fields(state)), host)


def copy_shared_leaves(
    state: TrainState, given: TrainState, passed: Sequence[bool] | None = None
) -> TrainState:
    """Copy the leaves of the device part that are arrays of another state, `given`.

    Those that are `passed` through, of all leaves, are left: nothing donates them.
    """
    theirs = set(map(id, jax.tree.leaves(given)))
    leaves, structure = jax.tree.flatten(strip_host_fields(state))
    for place, leaf in enumerate(leaves):
        if id(leaf) in theirs and not (passed and passed[place]):
            leaves[place] = _copy(leaf)
    return attach_host_fields(jax.tree.unflatten(structure, leaves), state)


def _copy(leaf: jax.Array) -> jax.Array:
    """Copy a leaf to where it lies; `jnp.copy` would compile, 5 to 20 ms for each shape."""
    if not leaf.is_fully_addressable:
        return jnp.array(leaf)
    return map_key_data(lambda leaves: jax.device_put(leaves[0], may_alias=False), [leaf])


def conform_state(template: TrainState, state: TrainState) -> TrainState:
    """Restore the weak types and shardings of the device part that compiled phases expect.

    Structure, shapes and dtypes must agree already.
    """

    def conform(wanted: jax.Array, leaf: Any) -> jax.Array:
        if leaf is wanted:
            return leaf
        if not isinstance(leaf, jax.Array):
            leaf = jnp.array(leaf, wanted.dtype)  # what is not donated must not share memory
        leaf = _strong(leaf)
        if leaf.sharding != wanted.sharding:
            leaf = jax.device_put(leaf, wanted.sharding)
        return leaf

    return attach_host_fields(
        jax.tree.map(conform, strip_host_fields(template), strip_host_fields(state)), state
    )


def has_same_arrays(before: TrainState, after: TrainState) -> bool:
    """Return whether the device parts of two states hold the very same leaf objects."""
    for field in DEVICE_FIELDS:
        old, new = getattr(before, field), getattr(after, field)
        if old is new:
            continue
        if not has_same_structure(old, new):
            return False
        if not all(map(operator.is_, jax.tree.leaves(old), jax.tree.leaves(new))):
            return False
    return True


def get_buffer_addresses(leaf: Any) -> tuple[int, ...]:
    """Return the addresses of a jax array's buffers; none for other objects.

    Two array objects may be views of one buffer, so comparing objects is not enough.
    """
    if not hasattr(leaf, "unsafe_buffer_pointer") or leaf.size == 0:
        return ()
    if len(leaf.sharding.device_set) == 1:
        return (leaf.unsafe_buffer_pointer(),)
    return tuple(shard.data.unsafe_buffer_pointer() for shard in leaf.addressable_shards)


def unshare_buffers(state: TrainState, before: TrainState | None = None) -> TrainState:
    """Copy leaves so that none of the device part shares a buffer with another or a hook state.

    Donating a buffer twice crashes, and hook states must outlive the arrays that training donates.
    What lies where it lay in the state `before` keeps its buffer: it may be the caller's, passed
    through. Returns the same state if nothing is shared.
    """
    leaves, structure = jax.tree.flatten((strip_host_fields(state), state.hook_state))
    earlier = [] if before is None else jax.tree.leaves(strip_host_fields(before))
    stayed = [leaf is old for leaf, old in zip(leaves, earlier, strict=False)]
    stayed += [False] * (len(leaves) - len(stayed))
    seen: set[int] = set()
    shares = False
    for place in sorted(range(len(leaves)), key=stayed.__getitem__, reverse=True):
        addresses = get_buffer_addresses(leaves[place])
        if seen.isdisjoint(addresses):
            seen.update(addresses)
        else:
            leaves[place], shares = jnp.copy(leaves[place]), True
    if not shares:
        return state
    device, hook_state = jax.tree.unflatten(structure, leaves)
    return attach_host_fields(device, state.replace(hook_state=hook_state))


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
    count, structure = len(jax.tree.leaves(state)), jax.tree.structure(state)
    given, returned = jaxpr.jaxpr.invars[:count], jaxpr.jaxpr.outvars[:count]
    pairs = zip(given, returned, strict=True)
    return LeafSplit(structure, tuple(one is other and _is_large(one.aval) for one, other in pairs))


def _is_large(aval: Any) -> bool:
    return math.prod(aval.shape) * aval.dtype.itemsize >= LARGE


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
