"""Shapes on a mesh: to compile a program for devices that are not there."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax._src.lib import xla_client  # JAX makes its own CPU devices by this
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from trainer.checks.arguments import describe_value
from trainer.placement.meshes import get_mesh, order_axes, parse_axes
from trainer.placement.rules import Rule, check_rules, choose_shardings
from trainer.state import TrainState, strip_host_fields


def make_virtual_mesh(text: str) -> Mesh:
    """Arrange devices that are not there in a mesh: programs compile for them, and cannot run.

    They are CPU devices, as many as the mesh needs.

    Args:
        text: axes and sizes, `data=64,model=8`, as for `trainer.mesh`.

    Raises:
        ValueError: it is no list of axes and sizes of at least 1.

    >>> dict(make_virtual_mesh("model=8,data=64").shape)
    {'data': 64, 'model': 8}
    """
    axes = order_axes(parse_axes(text))
    if not axes:
        raise ValueError(f"a mesh needs at least one axis, data=64; got {text!r}")
    devices = np.array(_make_devices(math.prod(axes.values()))).reshape(tuple(axes.values()))
    return Mesh(devices, tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


@functools.lru_cache(maxsize=4)
def _make_devices(count: int) -> Sequence[jax.Device]:
    client: Any = xla_client.make_cpu_client(num_devices=count)
    return tuple(client.devices())


def place_shapes(state: TrainState, mesh: Mesh | str | None, rules: Sequence[Rule]) -> TrainState:
    """Return the shapes of a state's device part, with where they lie.

    Args:
        state: a state, or its shapes.
        mesh: to lie on as `spread` would place it; a text makes a virtual one. None: where the
            state lies already, on one device or a mesh.
        rules: as for `spread`.

    Raises:
        TypeError, ValueError: mesh or rules do not suit the state, see `spread`.
    """
    shapes = jax.tree.map(_shape, strip_host_fields(state))
    if mesh is None:
        if rules:
            raise ValueError(
                f"rules say how a state is split over a mesh, and there is none; got "
                f'{[rule[0] for rule in rules]}: pass mesh= too, mesh="data=64"'
            )
        return _complete(shapes)
    check_rules(rules)
    if not isinstance(mesh, Mesh | str):
        raise TypeError(
            f'a mesh is trainer.mesh(...), or "data=64,model=8"; got {describe_value(mesh)}'
        )
    mesh = make_virtual_mesh(mesh) if isinstance(mesh, str) else mesh
    return jax.tree.map(_shape, shapes, choose_shardings(shapes, mesh, rules))


def _shape(leaf: jax.Array, sharding: NamedSharding | None = None) -> jax.ShapeDtypeStruct:
    if sharding is None and isinstance(kept := getattr(leaf, "sharding", None), NamedSharding):
        sharding = kept
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _complete(shapes: TrainState) -> TrainState:
    """Replicate what a phase adds to a state on a mesh, such as its position in the data."""
    if (mesh := get_mesh(shapes)) is None:
        return shapes
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: _shape(leaf, leaf.sharding or whole), shapes)


def count_device_bytes(state: TrainState) -> dict[str, int]:
    """Count the bytes of a state on each device, by field: `params`, `opt_state` and so on.

    Args:
        state: shapes of `place_shapes`.
    """
    fields = {
        name: getattr(state, name) for name in ("params", "opt_state", "model_state", "carry")
    }
    return {name: sum(map(_count_bytes, jax.tree.leaves(tree))) for name, tree in fields.items()}


def _count_bytes(leaf: jax.ShapeDtypeStruct) -> int:
    split = leaf.sharding
    shape = leaf.shape if split is None else split.shard_shape(leaf.shape)
    return int(math.prod(shape) * leaf.dtype.itemsize)
