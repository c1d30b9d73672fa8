"""Rules that say how the leaves of a state are split over a mesh."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from trainer.checks.arguments import describe_value
from trainer.checks.pytrees import format_path
from trainer.placement.meshes import DATA, MEMBERS
from trainer.state import LIVE, TrainState

SpecFunction = Callable[[tuple[int, ...], Mesh], PartitionSpec]
"""`(shape, mesh) -> PartitionSpec`."""

Rule = tuple[str, PartitionSpec | SpecFunction]
"""A regular expression that is sought in a leaf's path, `params/dense/kernel`, and how such leaves
are split."""

ENVIRONMENTS = re.compile(
    "^carry/(environment|teacher/recurrent|normalization/rewards/discounted)(/|$)"
)
"""Paths of what each environment of a rollout has for itself, `[env, ...]`, split over `data`."""

SMALL = 1024
"""Elements below which `fsdp` leaves an array whole: gathering it costs more than it saves."""


def fsdp(axis: str = DATA) -> SpecFunction:
    """Split each array along its largest dimension that the axis divides; small ones stay whole.

    The arrays are gathered where the network uses them, and lie split otherwise, as in FSDP and
    ZeRO-3.

    >>> from trainer import mesh
    >>> tuple(fsdp()((8, 512), mesh())), tuple(fsdp()((8,), mesh()))
    ((None, 'data'), ())
    """

    def choose(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
        size = _axis_size(mesh, axis)
        fitting = [place for place, length in enumerate(shape) if length % size == 0]
        if math.prod(shape) < SMALL or not fitting:
            return PartitionSpec()
        split = max(fitting, key=lambda place: shape[place])
        return PartitionSpec(*[None] * split, axis)

    return choose


def check_rules(rules: Any) -> None:
    """Check that rules are a sequence of pairs (regular expression, spec or function).

    Raises:
        TypeError: they are something else.
        ValueError: a regular expression is none.
    """
    form = '[("^params/", trainer.fsdp()), ("head/kernel$", PartitionSpec(None, "model"))]'
    if not isinstance(rules, Sequence) or isinstance(rules, str):
        raise TypeError(f"spread takes rules as a list, {form}; got {describe_value(rules)}")
    for rule in rules:
        pair = isinstance(rule, tuple) and len(rule) == 2 and isinstance(rule[0], str)
        if not pair or not (isinstance(rule[1], PartitionSpec) or callable(rule[1])):
            raise TypeError(
                "a rule of spread is a pair of a regular expression and a PartitionSpec, or a "
                f"function that makes one, {form}; got {rule!r:.100}"
            )
        try:
            re.compile(rule[0])
        except re.error as error:
            raise ValueError(f"spread: {rule[0]!r} is no regular expression: {error}") from None


def choose_shardings(state: TrainState, mesh: Mesh, rules: Sequence[Rule]) -> TrainState:
    """Return the sharding of each leaf of a state's device part.

    Args:
        state: the device part, or its shapes.
        mesh: to lie on.
        rules: the first that matches a path counts; what none matches is replicated. A leaf of the
            optimizer state is split as the parameter whose path ends its own if the shapes are
            equal, and replicated if not, as those of `optax.adafactor`.

    Raises:
        ValueError: a rule matches nothing, names no axis of the mesh, or splits what does not
            divide.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(state)
    named = {format_path(path): leaf.shape for path, leaf in leaves}
    used: set[int] = set()
    split_members = MEMBERS in mesh.axis_names
    params: dict[str, PartitionSpec] = {}

    def choose(path: str, shape: tuple[int, ...]) -> PartitionSpec:
        if split_members:
            whole = path in {"epoch", "step", f"carry/{LIVE}"}
            return _split_rows(path, () if whole else shape, mesh, MEMBERS)
        if path.startswith("opt_state/"):
            for name in sorted(params, key=len, reverse=True):
                if path.endswith("/" + name):
                    same = named["params/" + name] == shape
                    return params[name] if same else PartitionSpec()
        for number, (pattern, way) in enumerate(rules):
            if re.search(pattern, path):
                used.add(number)
                spec = way if isinstance(way, PartitionSpec) else way(shape, mesh)
                _check_spec(path, shape, spec, mesh)
                return spec
        if ENVIRONMENTS.match(path) and DATA in mesh.axis_names:
            return _split_rows(path, shape, mesh, DATA)
        return PartitionSpec()

    for path, shape in named.items():
        if path.startswith("params/"):
            params[path.removeprefix("params/")] = choose(path, shape)
    found = [NamedSharding(mesh, choose(path, shape)) for path, shape in named.items()]
    if unused := [rule for number, (rule, _) in enumerate(rules) if number not in used]:
        raise ValueError(
            f"spread: no path of the state matches {unused}; the paths are, among others, "
            f"{[path for path in named if path.startswith('params/')][:5]}"
        )
    return jax.tree.unflatten(structure, found)


def _split_rows(path: str, shape: tuple[int, ...], mesh: Mesh, axis: str) -> PartitionSpec:
    """Split an array `[row, ...]`; one without rows stays whole."""
    if not shape:
        return PartitionSpec()
    _check_spec(path, shape, spec := PartitionSpec(axis), mesh)
    return spec


def _check_spec(path: str, shape: tuple[int, ...], spec: Any, mesh: Mesh) -> None:
    where = f"spread: {path} {list(shape)} cannot be split by {spec} over {describe_mesh(mesh)}"
    if not isinstance(spec, PartitionSpec):
        raise TypeError(f"{where}: a rule gives a jax.sharding.PartitionSpec")
    if len(spec) > len(shape):
        raise ValueError(f"{where}: it has {len(shape)} dimensions")
    for length, axes in zip(shape, spec, strict=False):
        names = axes if isinstance(axes, tuple) else (axes,) if axes else ()
        parts = math.prod(_axis_size(mesh, name) for name in names)
        if length % parts:
            raise ValueError(f"{where}: {length} is not a multiple of {parts}")


def _axis_size(mesh: Mesh, axis: str) -> int:
    if axis not in mesh.axis_names:
        raise ValueError(f"there is no axis {axis!r} in the mesh {describe_mesh(mesh)}")
    return int(mesh.shape[axis])


def describe_mesh(mesh: Mesh) -> str:
    """Describe a mesh as in messages: `data=4, model=2`."""
    shape: Mapping[str, int] = mesh.shape
    return ", ".join(f"{name}={size}" for name, size in shape.items())
