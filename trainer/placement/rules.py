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
from trainer.checks.suggestions import suggest_and_list, suggest_name
from trainer.host.exception_notes import annotate_errors
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

FOLLOWERS = "opt_state/", "carry/reference/"
"""Beginnings of the paths whose leaves are split as the parameter of the same name."""

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
        if (size := mesh.shape.get(axis)) is None:
            return PartitionSpec(axis)  # refused by `spread`, which knows the leaf
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
            raise ValueError(
                f"spread: a rule takes a regular expression that is sought in paths, {form}; "
                f"{rule[0]!r} is no regular expression: {error} (characters such as ( are matched "
                "after a backslash)"
            ) from None


def choose_shardings(state: TrainState, mesh: Mesh, rules: Sequence[Rule]) -> TrainState:
    """Return the sharding of each leaf of a state's device part.

    Args:
        state: the device part, or its shapes.
        mesh: to lie on.
        rules: the first that matches a path counts; what none matches is replicated. A leaf of the
            optimizer state, or of a reference, is split as the parameter whose path ends its own if
            the shapes are equal, and replicated if not, as those of `optax.adafactor`.

    Raises:
        TypeError: a rule gives no spec.
        ValueError: a rule matches nothing, names no axis of the mesh, or splits what does not
            divide; or members and mesh do not suit each other.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(state)
    named = {format_path(path): leaf.shape for path, leaf in leaves}
    used: set[int] = set()
    if split_members := MEMBERS in mesh.axis_names:
        _check_members(f"carry/{LIVE}" in named, mesh, rules)
    params: dict[str, PartitionSpec] = {}

    def choose(path: str, shape: tuple[int, ...]) -> PartitionSpec:
        if split_members:
            whole = path in {"epoch", "step", f"carry/{LIVE}"}
            return _split_rows(path, () if whole else shape, mesh, MEMBERS, "of members")
        if path.startswith(FOLLOWERS):
            for name in sorted(params, key=len, reverse=True):
                if path.endswith("/" + name):
                    same = named["params/" + name] == shape
                    return params[name] if same else PartitionSpec()
        for number, (pattern, way) in enumerate(rules):
            if re.search(pattern, path):
                used.add(number)
                with annotate_errors(f"in the rule {pattern!r} of spread for {path} {list(shape)}"):
                    spec = way if isinstance(way, PartitionSpec) else way(shape, mesh)
                _check_spec(path, shape, spec, mesh)
                return spec
        if ENVIRONMENTS.match(path) and DATA in mesh.axis_names:
            return _split_rows(path, shape, mesh, DATA, "of environments, PPOConfig(envs=...),")
        return PartitionSpec()

    for path, shape in named.items():
        if path.startswith("params/"):
            params[path.removeprefix("params/")] = choose(path, shape)
    found = [NamedSharding(mesh, choose(path, shape)) for path, shape in named.items()]
    if unused := [rule[0] for number, rule in enumerate(rules) if number not in used]:
        raise ValueError(
            f"spread: no path of the state matches {unused}, or an earlier rule does; the paths "
            f"are, among others, {[path for path in named if path.startswith('params/')][:5]}."
            f"{suggest_name(unused[0], named)} Change the expression, or leave the rule out"
        )
    return jax.tree.unflatten(structure, found)


def _check_members(is_population: bool, mesh: Mesh, rules: Sequence[Rule]) -> None:
    """Check that a state suits a mesh with the axis `members`."""
    where = f"spread: the mesh {describe_mesh(mesh)} has the axis {MEMBERS!r}, "
    if not is_population:
        raise ValueError(
            f"{where}which splits a population; this state is of no population: make one with "
            "trainer.population_of(init, keys), or a mesh without this axis, trainer.mesh()"
        )
    if rules:
        raise ValueError(
            f"{where}where each member lies whole on one device, and takes no rules; got "
            f"{[pattern for pattern, _ in rules]}: leave rules out"
        )


def _split_rows(
    path: str, shape: tuple[int, ...], mesh: Mesh, axis: str, rows: str
) -> PartitionSpec:
    """Split an array `[row, ...]`; one without rows stays whole."""
    if not shape:
        return PartitionSpec()
    if shape[0] % mesh.shape[axis]:
        raise ValueError(
            f"spread: {path} {list(shape)} cannot be split by {PartitionSpec(axis)} over "
            f"{describe_mesh(mesh)}: {shape[0]} is not a multiple of {mesh.shape[axis]}; take a "
            f"number {rows} that is, or a mesh with a smaller axis {axis!r}"
        )
    return PartitionSpec(axis)


def _check_spec(path: str, shape: tuple[int, ...], spec: Any, mesh: Mesh) -> None:
    """Check that a leaf can be split by the spec that a rule gives for it."""
    where = f"spread: {path} {list(shape)} cannot be split by {spec} over {describe_mesh(mesh)}"
    if not isinstance(spec, PartitionSpec):
        raise TypeError(
            f"{where}: a rule gives a jax.sharding.PartitionSpec; got {describe_value(spec)}: "
            'return PartitionSpec(None, "data"), or PartitionSpec() to leave it whole'
        )
    split = [axes if isinstance(axes, tuple) else (axes,) if axes else () for axes in spec]
    named = [name for names in split for name in names]
    for name in named:
        if name not in mesh.axis_names:
            raise ValueError(
                f"{where}: the mesh has no axis {name!r}"
                f"{suggest_and_list(name, mesh.axis_names)}; name one of these in the rule, or "
                f"make a mesh with this axis, trainer.mesh({describe_mesh(mesh)}, {name}=...)"
            )
        if named.count(name) > 1:
            raise ValueError(f"{where}: it names the axis {name!r} twice; name each axis once")
    if len(spec) > len(shape):
        raise ValueError(
            f"{where}: it has {len(shape)} dimensions, and the spec is for {len(spec)}; shorten "
            "the spec, or let the expression of the rule match fewer leaves"
        )
    for length, names in zip(shape, split, strict=False):
        parts = math.prod(mesh.shape[name] for name in names)
        if length % parts:
            raise ValueError(
                f"{where}: {length} is not a multiple of {parts}; leave this dimension whole by "
                "None in the spec, or change its size or the mesh"
            )


def describe_mesh(mesh: Mesh) -> str:
    """Describe a mesh as in messages: `data=4, model=2`."""
    shape: Mapping[str, int] = mesh.shape
    return ", ".join(f"{name}={size}" for name, size in shape.items())
