"""Constraints while a phase is traced, so that each device computes its own part.

Without them XLA computes the whole batch on every device, and gathers a split state before a loop.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from trainer.placement.meshes import DATA, MEMBERS, get_mesh
from trainer.state import PyTree, TrainState, strip_host_fields


@dataclasses.dataclass(frozen=True)
class Placement:
    """The mesh of the state that a phase is traced for, and where its leaves lie."""

    mesh: Mesh
    shardings: TrainState
    """Of the device part: a sharding for each leaf."""


_current: contextvars.ContextVar[Placement | None] = contextvars.ContextVar("mesh", default=None)


@contextlib.contextmanager
def trace_on_mesh(state: TrainState) -> Iterator[None]:
    """Trace for the mesh of a state; on one device this does nothing."""
    if (mesh := get_mesh(state)) is None:
        yield
        return
    shardings = jax.tree.map(lambda leaf: leaf.sharding, strip_host_fields(state))
    token = _current.set(Placement(mesh, shardings))
    try:
        with jax.set_mesh(mesh):
            yield
    finally:
        _current.reset(token)


def is_on_mesh() -> bool:
    """Return whether a phase is traced for a mesh."""
    return _current.get() is not None


def choose_output_shardings(*, updates_state: bool) -> dict[str, Any]:
    """Return the option of `jax.jit` for a function that returns (state or None, others, others).

    The state stays where it is, else donation fails; all else is replicated.
    """
    if (placement := _current.get()) is None:
        return {}
    whole = _replicate_over(placement.mesh)
    return {"out_shardings": (placement.shardings if updates_state else None, whole, whole)}


def replicate_outputs() -> dict[str, Any]:
    """Return the option of `jax.jit` for a function whose outputs every device holds."""
    placement = _current.get()
    return {} if placement is None else {"out_shardings": _replicate_over(placement.mesh)}


def replicate_shapes(shapes: PyTree) -> PyTree:
    """Return shapes of arrays that every device holds."""
    if (placement := _current.get()) is None:
        return shapes
    whole = _replicate_over(placement.mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), shapes)


def _replicate_over(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def _get_placement() -> Placement | None:
    """Return the placement of a state that is not of a population.

    Members lie each on one device, where nothing is left to split.
    """
    placement = _current.get()
    return None if placement is None or MEMBERS in placement.mesh.axis_names else placement


def constrain_state(state: TrainState) -> TrainState:
    """Keep each leaf of a state's device part where it lies."""
    if (placement := _get_placement()) is None:
        return state
    return jax.tree.map(lax.with_sharding_constraint, state, placement.shardings)


def constrain_changes(given: TrainState, constrained: TrainState, after: TrainState) -> TrainState:
    """Constrain the state after a function; what it passes through becomes the `given` leaf again.

    The function was called with `constrain_state(given)`. JAX sees then that a loop passes it on.
    """
    if (placement := _get_placement()) is None:
        return after

    def constrain(before: Any, within: Any, leaf: Any, sharding: Any) -> Any:
        return before if leaf is within else lax.with_sharding_constraint(leaf, sharding)

    return jax.tree.map(constrain, given, constrained, after, placement.shardings)


def check_batch(batch: PyTree) -> None:
    """Raise ValueError if the axis `data` does not divide a batch `[batch, ...]`."""
    size, parts = len(jax.tree.leaves(batch)[0]), _count_parts()
    if size % parts:
        raise ValueError(
            f"a batch of {size} examples cannot be split over the {parts} devices of the axis "
            f"{DATA!r}: take a batch_size that is a multiple of {parts}"
        )


def split_batch(batch: PyTree, axis: int = 0) -> PyTree:
    """Split arrays over `data` along an axis; those that it does not divide are computed whole."""
    placement, parts = _get_placement(), _count_parts()
    if placement is None or parts == 1:
        return batch
    split = NamedSharding(placement.mesh, PartitionSpec(*[None] * axis, DATA))

    def split_leaf(leaf: jax.Array) -> jax.Array:
        return leaf if leaf.shape[axis] % parts else lax.with_sharding_constraint(leaf, split)

    return jax.tree.map(split_leaf, batch)


def replicate(tree: PyTree) -> PyTree:
    """Let every device, and so every process, hold arrays whole."""
    if (placement := _get_placement()) is None:
        return tree
    return lax.with_sharding_constraint(tree, _replicate_over(placement.mesh))


def map_rows(function: Callable[[Any, PyTree], PyTree], shared: Any, rows: PyTree) -> PyTree:
    """Call `function(shared, rows)`; on a mesh each device calls it with its own rows `[row, ...]`.

    For what decides by its rows: over all of them, the devices would have to agree.
    """
    placement, parts = _get_placement(), _count_parts()
    if placement is None or parts == 1 or len(jax.tree.leaves(rows)[0]) % parts:
        return function(shared, rows)
    split, whole = PartitionSpec(DATA), PartitionSpec()
    mapped = jax.shard_map(
        function,
        mesh=placement.mesh,
        in_specs=(whole, split),
        out_specs=split,
        check_vma=False,
    )
    return mapped(shared, rows)


def _count_parts() -> int:
    """Return the number of parts of a batch: the size of the axis `data`, or 1."""
    placement = _get_placement()
    return 1 if placement is None else int(placement.mesh.shape.get(DATA, 1))


def gather_params(params: PyTree, field: str = "params") -> PyTree:
    """Gather parameters that are split over `data`, as the network needs them.

    A constraint where they are used makes one gather of each; XLA would otherwise exchange
    activations as well. `field` of the state is where they lie: frozen ones are `model_state`.
    """
    leaves, structure = jax.tree.flatten(params)
    for number, (_, whole) in list_gathered(params, field).items():
        leaves[number] = lax.with_sharding_constraint(leaves[number], whole)
    return jax.tree.unflatten(structure, leaves)


def list_gathered(
    params: PyTree, field: str = "params"
) -> dict[int, tuple[NamedSharding, NamedSharding]]:
    """Return by number how parameters that are split over `data` lie, and how once gathered.

    They are a field of the state, and leaves are numbered in it.
    """
    if (placement := _get_placement()) is None:
        return {}
    at = getattr(placement.shardings, field)
    found = jax.tree.leaves(jax.tree.map(lambda _, at: at, params, at))
    specs = [PartitionSpec(*(_without_data(axes) for axes in split.spec)) for split in found]
    return {
        number: (split, NamedSharding(placement.mesh, spec))
        for number, (split, spec) in enumerate(zip(found, specs, strict=True))
        if spec != split.spec
    }


def _without_data(axes: Any) -> Any:
    if isinstance(axes, tuple):
        return tuple(axis for axis in axes if axis != DATA) or None
    return None if axes == DATA else axes


def place_batches(
    piece: PyTree, state: TrainState, *, axis: int | None, size: int | None = None
) -> PyTree:
    """Transfer data of the host to where the state lies, without waiting.

    Args:
        piece: arrays.
        state: that they are for.
        axis: of the examples of a batch, which is split over `data` where it divides; None: every
            device holds all.
        size: examples in a whole batch, of which the piece holds the rows of `list_local_rows`;
            None: it holds all.
    """
    if (mesh := get_mesh(state)) is None:
        return jax.device_put(piece)

    def place(leaf: Any) -> jax.Array:
        shape = list(leaf.shape)
        if axis is not None and size is not None:
            shape[axis] = size
        sharding = _batch_sharding(tuple(shape), mesh, axis)
        if getattr(leaf, "sharding", None) == sharding:
            return leaf
        if sharding.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        if leaf.shape != tuple(shape):
            return jax.make_array_from_process_local_data(sharding, leaf, tuple(shape))
        return to_global(np.asarray(leaf), sharding)

    return jax.tree.map(place, piece)


def to_global(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Place an array that every process has over the devices of all; each transfers its part.

    `jax.device_put` takes 4.5 ms for it, and the processes wait for each other.
    """
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


@functools.lru_cache(maxsize=64)
def list_local_rows(mesh: Mesh | None, batch: int) -> np.ndarray:
    """List the rows of a batch that the devices of this process need, in order.

    >>> list_local_rows(None, 4)
    array([0, 1, 2, 3])
    """
    rows = np.arange(batch)
    if mesh is None:
        return rows
    sharding = _batch_sharding((batch,), mesh, 0)
    indices = sharding.addressable_devices_indices_map((batch,)).values()
    return np.unique(np.concatenate([rows[index] for index in indices]))


def shape_batches(piece: PyTree, state: TrainState, *, axis: int | None) -> PyTree:
    """Return the shapes of a piece as `place_batches` places it; itself on one device."""
    if (mesh := get_mesh(state)) is None:
        return piece

    def shape(leaf: Any) -> jax.ShapeDtypeStruct:
        sharding = _batch_sharding(leaf.shape, mesh, axis)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(shape, piece)


def _batch_sharding(shape: tuple[int, ...], mesh: Mesh, axis: int | None) -> NamedSharding:
    if axis is None or axis >= len(shape) or DATA not in mesh.axis_names:
        return _replicate_over(mesh)
    if shape[axis] % mesh.shape[DATA]:
        return _replicate_over(mesh)
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, DATA))
