"""Which modules of a family the adapters of layers belong to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from models.fine_tuning.lora import A, B
from models.huggingface.families import Family
from models.huggingface.parameters import locate_parameters
from models.network import PyTree

Factors = tuple[np.ndarray, np.ndarray]
"""The factors of an adapter, float32 `[in, rank]` and `[rank, out]`."""


@dataclass(frozen=True)
class ModulePart:
    """A layer, or one of the layers that are stacked, in a module."""

    layer: str
    row: int | None
    """Number among stacked layers; None for a layer of its own."""
    start: int
    """Of the columns of its kernel among those of the module."""
    size: int


@dataclass(frozen=True)
class AdapterModule:
    """A module of a family, and the layers that it is made of: one, or several side by side."""

    name: str
    inputs: int
    outputs: int
    parts: tuple[ModulePart, ...]

    def join(self, adapters: PyTree) -> Factors | None:
        """Return the factors of the module's adapter, or None if no part of it has one.

        Parts with different first factors add up their ranks.
        """
        found = [(part, factors) for part in self.parts if (factors := _find(adapters, part))]
        if not found:
            return None
        firsts = [a for _, (a, _) in found]
        if all(np.array_equal(firsts[0], a) for a in firsts[1:]):
            firsts = firsts[:1]
        rank = found[0][1][0].shape[1]
        b = np.zeros((rank * len(firsts), self.outputs), np.float32)
        for number, (part, (_, own)) in enumerate(found):
            row = rank * number if len(firsts) > 1 else 0
            b[row : row + rank, part.start : part.start + part.size] = own
        return np.concatenate(firsts, axis=1), b


def list_modules(params: PyTree, family: Family) -> list[AdapterModule]:
    """Return the modules of a network that may have adapters, in order of its layers.

    Args:
        params: the parameters of the network without adapters, or their shapes.
        family: whose names the modules have.
    """
    parts: dict[str, list[ModulePart]] = {}
    inputs: dict[str, int] = {}
    for path, parameter in locate_parameters(params, family)[0].items():
        layer = path.removesuffix("/kernel")
        if layer == path or layer == "head":
            continue
        for row, slot in enumerate(parameter.slots):
            name = slot.tensor.removesuffix(".weight")
            place = row if parameter.stacked else None
            part = ModulePart(layer, place, slot.start, parameter.shape[-1])
            parts.setdefault(name, []).append(part)
            inputs[name] = parameter.shape[-2]
    return [
        AdapterModule(name, inputs[name], sum(part.size for part in own), tuple(own))
        for name, own in parts.items()
    ]


def name_targets(adapted: Collection[str], every: Collection[str]) -> list[str]:
    """Return the shortest ends of names that mean the adapted modules, and no other.

    >>> every = ["h.0.attn.c_proj", "h.0.mlp.c_proj", "h.0.mlp.c_fc"]
    >>> name_targets(["h.0.attn.c_proj", "h.0.mlp.c_fc"], every)
    ['attn.c_proj', 'c_fc']
    """
    found = set()
    for name in adapted:
        words = name.split(".")
        ends = [".".join(words[-count:]) for count in (1, 2)]
        for end in (*ends, name):
            if all(one in adapted for one in every if one == end or one.endswith(f".{end}")):
                found.add(end)
                break
    return sorted(found)


def split_module(module: AdapterModule, a: np.ndarray, b: np.ndarray) -> dict[ModulePart, Factors]:
    """Return the factors of each part of a module's adapter."""
    return {part: (a, b[:, part.start : part.start + part.size]) for part in module.parts}


def build_adapters(
    found: Mapping[ModulePart, Factors], modules: Sequence[AdapterModule]
) -> tuple[list[str], PyTree]:
    """Return the layers that have adapters, and these in the structure of `models.lora`.

    Raises:
        ValueError: of layers that are stacked, only some have one.
    """
    rows: dict[str, list[Factors]] = {}
    for part, pair in sorted(found.items(), key=lambda item: item[0].row or 0):
        rows.setdefault(part.layer, []).append(pair)
    parts = [part for module in modules for part in module.parts if part.row is not None]
    stacks = Counter(part.layer for part in parts)
    tree: dict[str, Any] = {}
    for layer, factors in rows.items():
        firsts, seconds = [a for a, _ in factors], [b for _, b in factors]
        a, b = firsts[0], seconds[0]
        if count := stacks[layer]:
            if len(firsts) != count:
                raise ValueError(
                    f"only {len(firsts)} of {count} blocks have an adapter of {layer}, and all of "
                    "them run as one scan: read the network with scan=False"
                )
            a, b = np.stack(firsts), np.stack(seconds)
        below = tree
        for name in layer.split("/"):
            below = below.setdefault(name, {})
        below |= {A: jax.device_put(a), B: jax.device_put(b)}
    return list(rows), tree


def _find(adapters: PyTree, part: ModulePart) -> Factors | None:
    for name in part.layer.split("/"):
        if name not in adapters:
            return None
        adapters = adapters[name]
    a, b = (np.asarray(adapters[name], np.float32) for name in (A, B))
    return (a, b) if part.row is None else (a[part.row], b[part.row])
