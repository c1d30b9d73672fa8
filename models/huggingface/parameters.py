"""Which tensors a network's parameters lie in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.huggingface.families import LINEAR, Family
from models.huggingface.tensor_files import StoredTensor
from models.network import PyTree

ALIGNMENT = 64
"""Bytes: JAX uses arrays on the host that are aligned to this as they are, without a copy."""


@dataclass(frozen=True)
class Slot:
    """Where the values of a parameter, or of one layer of it, lie."""

    tensor: str
    start: int
    """Of the parameter's last axis: parameters that share a tensor lie side by side."""
    transposed: bool


@dataclass(frozen=True)
class Parameter:
    """Shape and dtype of a parameter, and the slots of its layers, one if it has no layers."""

    shape: tuple[int, ...]
    dtype: Any
    slots: tuple[Slot, ...]
    stacked: bool
    """Whether its first axis is that of the layers."""

    def read(
        self, tensors: Mapping[str, StoredTensor], dtype: Any, index: Sequence[slice]
    ) -> np.ndarray:
        """Read a part of it, each byte once, into a new array.

        Args:
            tensors: where they are stored, by name.
            dtype: of the result.
            index: a slice of step 1 for each axis.
        """
        bounds = [part.indices(size)[:2] for part, size in zip(index, self.shape, strict=True)]
        out = _make_aligned([end - start for start, end in bounds], dtype)
        layers, *rest = bounds if self.stacked else [(0, 1), *bounds]
        for row, slot in enumerate(self.slots[slice(*layers)]):
            part = out[row] if self.stacked else out
            last = slice(*(slot.start + place for place in rest[-1]))
            first = slice(*rest[0]) if len(rest) > 1 else slice(None)
            rows, columns = (
                (first, last) if len(rest) > 1 and not slot.transposed else (last, first)
            )
            tensors[slot.tensor].read_into(part, rows, columns, transposed=slot.transposed)
        return out


def _make_aligned(shape: Sequence[int], dtype: Any) -> np.ndarray:
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def locate_parameters(
    shapes: PyTree, family: Family
) -> tuple[dict[str, Parameter], dict[str, tuple[int, ...]]]:
    """Find the tensors of a network's parameters.

    Args:
        shapes: the parameters of `models.transformer`, or their shapes and dtypes; with the blocks
            of a loop or of a scan.
        family: whose names and layout the tensors have.

    Returns:
        The parameters by path, and the shapes of all tensors by name.

    Raises:
        ValueError: the family has no tensor for a parameter; all such are listed.
    """
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    }
    found: dict[str, Parameter] = {}
    sizes: dict[str, tuple[int, ...]] = {}
    unknown = []
    order = {name: number for number, name in enumerate(family.tensors)}
    names = {path: _split_path(path) for path in leaves}
    for path in sorted(leaves, key=lambda path: order.get(names[path][0], -1)):
        name, layer = names[path]
        shape = tuple(leaves[path].shape)
        if name not in family.tensors:
            unknown.append(path)
            continue
        stacked = name.startswith("blocks/") and layer is None
        layers, inner = (range(shape[0]), shape[1:]) if stacked else ((layer,), shape)
        transposed = family.layout == LINEAR and name.endswith("/kernel")
        slots = []
        for number in layers:
            tensor = family.tensors[name].format(number)
            *before, start = sizes.get(tensor, (*inner[:-1], 0))
            sizes[tensor] = (*before, start + inner[-1])
            slots.append(Slot(tensor, start, transposed))
        found[path] = Parameter(shape, jnp.dtype(leaves[path].dtype), tuple(slots), stacked)
    if unknown:
        raise ValueError(f"the family {family.model_type} has no tensor for {', '.join(unknown)}")
    turned = {slot.tensor for each in found.values() for slot in each.slots if slot.transposed}
    return found, {name: size[::-1] if name in turned else size for name, size in sizes.items()}


def _split_path(path: str) -> tuple[str, int | None]:
    """Return the path without the number of a layer, and the number.

    >>> _split_path("blocks/3/up/kernel"), _split_path("blocks/up/kernel")
    (('blocks/up/kernel', 3), ('blocks/up/kernel', None))
    """
    first, _, rest = path.partition("/")
    number, _, last = rest.partition("/")
    return (f"{first}/{last}", int(number)) if number.isdigit() else (path, None)


def list_parts(parameters: Mapping[str, Parameter]) -> dict[str, list[tuple[str, int | None]]]:
    """Return the parameters of each tensor in their order in it, and the layer if they have layers.

    The first is a path; the second is None for a parameter without an axis of layers.
    """
    parts: dict[str, list[tuple[int, str, int | None]]] = {}
    for path, parameter in parameters.items():
        for number, slot in enumerate(parameter.slots):
            part = (slot.start, path, number if parameter.stacked else None)
            parts.setdefault(slot.tensor, []).append(part)
    return {
        tensor: [(path, layer) for _, path, layer in sorted(found, key=lambda part: part[0])]
        for tensor, found in parts.items()
    }
