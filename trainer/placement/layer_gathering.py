"""Gathering split parameters where a network uses them: in a loop over layers, one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
from jax import lax
from jax.extend import core
from jax.sharding import NamedSharding, PartitionSpec

from trainer.placement.constraints import gather_params, list_gathered
from trainer.state import PyTree

CONSTRAINT, CHECKPOINTS = "sharding_constraint", ("checkpoint", "remat", "remat2")
"""The primitive of `lax.with_sharding_constraint`, and the names of that of `jax.checkpoint`."""

CAST = "convert_element_type"
"""The primitive of `astype`."""


def call_gathered(
    function: Callable[[PyTree, PyTree], PyTree], params: PyTree, model_state: PyTree
) -> PyTree:
    """Return `function(params, model_state)`, with what is split over `data` gathered for it.

    Arrays `[layer, ...]` that the function only loops over, by `lax.scan`, stay split: each round
    of the loop gathers its layer, forward and again backward, so that no device holds them all. So
    does what the function returns unchanged, as it does a frozen base under adapters.

    Args:
        function: of arrays to arrays; where parameters are split it is traced once more.
        params, model_state: of the state that a phase is traced for.
    """
    count = len(jax.tree.leaves(params))
    frozen = list_gathered(model_state, "model_state")
    gathered = list_gathered(params) | {count + number: how for number, how in frozen.items()}
    if not gathered:
        return function(params, model_state)
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(params, model_state)
    stacks = _find_stacks(closed.jaxpr, gathered)
    if not stacks and not frozen:
        return function(gather_params(params), model_state)
    leaves = jax.tree.leaves((params, model_state))
    whole = jax.tree.leaves((gather_params(params), gather_params(model_state, "model_state")))
    mixed = [
        leaf if var in stacks else other
        for var, leaf, other in zip(closed.jaxpr.invars, leaves, whole, strict=True)
    ]
    equations = [_gather_layers(equation, stacks) for equation in closed.jaxpr.eqns]
    changed = closed.replace(jaxpr=closed.jaxpr.replace(eqns=equations))
    results = core.jaxpr_as_fun(changed)(*mixed)
    given = dict(zip(map(id, closed.jaxpr.invars), leaves, strict=True))
    for number, variable in enumerate(closed.jaxpr.outvars):
        results[number] = given.get(id(variable), results[number])
    return jax.tree.unflatten(jax.tree.structure(shapes), results)


def _find_stacks(
    jaxpr: Any, gathered: Mapping[int, tuple[NamedSharding, NamedSharding]]
) -> dict[Any, NamedSharding]:
    """Return the parameters that are only looped over, and how one layer lies once gathered.

    They may be cast before; the results of that are in it too. They may also be returned.
    """
    layers = {
        jaxpr.invars[number]: NamedSharding(whole.mesh, PartitionSpec(*whole.spec[1:]))
        for number, (split, whole) in gathered.items()
        if split.spec[0] is None
    }
    origins = {variable: variable for variable in layers}
    used: set[Any] = set()

    def use(variables: Iterable[Any]) -> None:
        for variable in variables:
            if not isinstance(variable, core.Literal) and variable in origins:
                used.add(origins[variable])

    for equation in jaxpr.eqns:
        name, inputs = equation.primitive.name, equation.invars
        if name == CAST and inputs[0] in origins:
            origins[equation.outvars[0]] = origins[inputs[0]]
        else:
            looped = _find_looped(equation) if name == "scan" else ()
            use(one for number, one in enumerate(inputs) if number not in looped)
    use(one for one in jaxpr.outvars if one not in jaxpr.invars)
    return {one: layers[origin] for one, origin in origins.items() if origin not in used}


def _find_looped(scan: Any) -> list[int]:
    """Return the numbers of the inputs that a scan loops over: its body sees an axis less."""
    inputs = zip(scan.invars, scan.params["jaxpr"].in_avals, strict=True)
    return [number for number, (one, row) in enumerate(inputs) if one.aval.ndim > row.ndim]


def _gather_layers(equation: Any, stacks: Mapping[Any, NamedSharding]) -> Any:
    """Return a scan whose rounds gather their layer of the stacks; other equations as they are."""
    if equation.primitive.name != "scan":
        return equation
    body, inputs = equation.params["jaxpr"], equation.invars
    layers = {
        number: stacks[inputs[number]]
        for number in _find_looped(equation)
        if inputs[number] in stacks
    }
    if not layers:
        return equation

    def run(*values: Any) -> Any:
        whole = list(values)
        for number, sharding in layers.items():
            whole[number] = lax.with_sharding_constraint(values[number], sharding)
        return core.jaxpr_as_fun(body)(*whole)

    # Without it the backward pass would keep all gathered layers. It overrides checkpoints in the
    # body, so a body that has one, such as of a block, is recomputed whole.
    recomputed = any(inner.primitive.name in CHECKPOINTS for inner in body.jaxpr.eqns)
    policy = None if recomputed else _is_not_gathered
    once_more = jax.checkpoint(run, policy=policy, prevent_cse=False)
    shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in body.in_avals]
    return equation.replace(params={**equation.params, "jaxpr": jax.make_jaxpr(once_more)(*shapes)})


def _is_not_gathered(primitive: Any, *inputs: Any, **params: Any) -> bool:
    return primitive.name != CONSTRAINT
