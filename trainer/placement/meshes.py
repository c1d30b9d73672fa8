"""Meshes of devices, and the mesh on which a state lies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding

from trainer.checks.arguments import require_integer
from trainer.state import TrainState

DATA, MEMBERS = "data", "members"
"""The axes that batches and members of a population are split over."""


def mesh(text: str = "", /, **axes: int) -> Mesh:
    """Arrange all devices of all processes in a mesh.

    The axis `data` splits batches, `members` the members of a population; other names are yours,
    and rules of `spread` use them. `data` comes first, so that each process reads only its own part
    of a batch.

    Args:
        text: the axes as a command line gives them, `data=4,model=2`.
        axes: name to size; the product is the number of devices. Without any: `data` alone.

    Raises:
        TypeError: a size is no whole number.
        ValueError: a size is below 1, the product is not the number of devices, or the text is no
            list of axes.

    >>> dict(mesh().shape) == {"data": len(jax.devices())}
    True
    """
    count = len(jax.devices())
    sizes = order_axes((parse_axes(text) | axes) or {DATA: count})
    if math.prod(sizes.values()) != count:
        asked = " * ".join(f"{name}={size}" for name, size in sizes.items())
        raise ValueError(
            f"a mesh takes all devices: {asked} makes {math.prod(sizes.values())}, and there are "
            f"{count} ({jax.devices()[0].device_kind}); leave one axis out, or change its size"
        )
    return jax.make_mesh([*sizes.values()], [*sizes], axis_types=(AxisType.Auto,) * len(sizes))


def order_axes(sizes: Mapping[str, int]) -> dict[str, int]:
    """Return the axes of a mesh with `data` first, after a check of their sizes."""
    for name, size in sizes.items():
        require_integer(f"mesh: {name}", size, 1)
    return {name: sizes[name] for name in sorted(sizes, key=lambda name: name != DATA)}


def parse_axes(text: str) -> dict[str, int]:
    """Return the axes of a mesh that is written as `data=4,model=2`.

    Raises:
        ValueError: it is no list of axes and sizes.
    """
    try:
        pairs = [part.split("=") for part in text.split(",") if part.strip()]
        axes = {name.strip(): int(size) for name, size in pairs}
    except ValueError:
        pairs, axes = [], {"": 0}
    if "" in axes or len(axes) < len(pairs):
        raise ValueError(
            f"a mesh is written as axes and sizes, each axis once, data=4,model=2; got {text!r}"
        )
    return axes


def get_mesh(state: TrainState) -> Mesh | None:
    """Return the mesh on which a state lies; None where it lies on one device."""
    sharding: Any = getattr(state.step, "sharding", None)
    found = sharding.mesh if isinstance(sharding, NamedSharding) else None
    return found if isinstance(found, Mesh) else None


def describe_mesh(state: TrainState) -> str | None:
    """Describe the mesh on which a state lies: `data=4, model=2`; None on one device."""
    if (found := get_mesh(state)) is None:
        return None
    axes = ", ".join(f"{name}={size}" for name, size in found.shape.items())
    processes = {device.process_index for device in found.devices.flat}
    return axes if len(processes) == 1 else f"{axes} over {len(processes)} processes"
