"""`spread`: place a state on the devices of a mesh."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from trainer.checks.arguments import describe_value
from trainer.checks.pytrees import is_key
from trainer.placement.constraints import to_global
from trainer.placement.hoisting import jit_hoisted
from trainer.placement.meshes import DATA, MEMBERS
from trainer.placement.meshes import mesh as make_mesh
from trainer.placement.rules import Rule, check_rules, choose_shardings
from trainer.state import LIVE, TrainState, attach_host_fields, require_state, strip_host_fields


def spread(
    state: TrainState | Callable[[], TrainState],
    mesh: Mesh | None = None,
    *,
    rules: Sequence[Rule] = (),
) -> TrainState:
    """Place a state on the devices of a mesh; training, evaluation and resuming follow it.

    Batches are split over the axis `data`: each device computes its part, and the gradients are
    summed. The bits are those of the same mesh again, and to rounding those of one device.

    Args:
        state: a state, or a function that makes one, `lambda: task.init(key, source.example)` or
            `lambda: population_of(init, keys)`: this is computed in place, so that no device holds
            what the rules split, or all members.
        mesh: of `trainer.mesh`; None: all devices along `data`, or along `members` for a
            population.
        rules: how leaves are split, in order: a regular expression that is sought in the path, and
            a `PartitionSpec` or a function `(shape, mesh) -> PartitionSpec` such as
            `trainer.fsdp()`. Leaves of the optimizer state, and of a reference of `rl.grpo`, follow
            their parameter; other leaves are replicated.

    Returns:
        The state, with the same values.

    Raises:
        TypeError: this is no state, no mesh, or no list of rules, or a rule gives no spec.
        ValueError: a rule is no regular expression, matches no path, names no axis of the mesh, or
            splits what does not divide; or a population has members that the axis `members` does
            not divide.

    >>> import jax.numpy as jnp
    >>> state = TrainState.create(params={"w": jnp.ones((8, 512))}, rng=jax.random.key(0))
    >>> from trainer import fsdp
    >>> tuple(spread(state, rules=[("^params/", fsdp())]).params["w"].sharding.spec)
    (None, 'data')
    """
    check_rules(rules)
    if mesh is not None and not isinstance(mesh, Mesh):
        raise TypeError(
            f"spread takes a mesh, trainer.mesh(data=8), second; got {describe_value(mesh)}"
        )
    if isinstance(state, TrainState) or not callable(state):
        require_state("spread", state)
        shapes = strip_host_fields(state)
    else:
        make: Callable[[], TrainState] = state

        def init() -> TrainState:
            if not isinstance(made := make(), TrainState):
                raise TypeError(
                    "spread takes a function that makes a TrainState, lambda: task.init(key, "
                    f"source.example); it returned {describe_value(made)}"
                )
            return strip_host_fields(made)

        shapes = jax.eval_shape(init)
    mesh = _choose_mesh(shapes) if mesh is None else mesh
    shardings = choose_shardings(shapes, mesh, rules)
    if isinstance(state, TrainState):
        return attach_host_fields(jax.tree.map(_place, shapes, shardings), state)
    return jit_hoisted(init, out_shardings=shardings, place=_place)().replace(stop=False)


def _place(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """Place a leaf that every process has."""
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    if is_key(leaf):
        data = to_global(np.asarray(jax.random.key_data(leaf)), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    return to_global(np.asarray(leaf), sharding)


def _choose_mesh(shapes: TrainState) -> Mesh:
    population = isinstance(shapes.carry, dict) and LIVE in shapes.carry
    return make_mesh(**{MEMBERS if population else DATA: len(jax.devices())})
