"""Networks of Flax NNX modules."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util

from models.argument_checks import require_fit
from models.network import Network, PyTree, named_key, shapes_of
from models.train_flags import AUTO, find_flags, make_flag_kwargs

Build = Callable[[nnx.Rngs, PyTree], nnx.Module]
Parts = tuple[Any, nnx.State, nnx.State, nnx.State]  # graphdef, params, random, kept
Assemble = Callable[[PyTree, PyTree, PyTree, jax.Array | None], tuple[nnx.Module, nnx.State]]


def from_nnx(build: Build, *, train_flag: str | None = AUTO) -> Network:
    """Build a network from a Flax NNX module, called as `module(inputs)`.

    The parameters are the module's `nnx.Param` variables. The model state is every other array in
    it, batch statistics for instance, except two kinds: random state, which is derived from `key`
    at each call, each stream from its path in the module, so that nothing random is saved; and
    `nnx.Intermediate`. `module.train()` or `module.eval()` runs before each call, and a train flag
    among the call's keywords is set too: `train`, `deterministic` and the others that `from_linen`
    finds. Changes of the module's own parameters in a call are dropped.

    `build` runs in `init`, and abstractly in `apply`, once for each shape of inputs (about 7 ms a
    layer): it must not depend on anything that changes. A jitted `apply` costs no more than the
    module's computation; without jit the Python around it costs a few milliseconds per call.

    Args:
        build: `(rngs, example) -> module`. `example` is the inputs as a pytree of
            `jax.ShapeDtypeStruct`, which provides sizes; a module of fixed sizes ignores it:
            `from_nnx(lambda rngs, example: MyModule(rngs=rngs))`.
        train_flag: name of the train flag among the keywords of `__call__`, as in `from_linen`.

    Returns:
        The network; its dicts follow the module's attributes, `{"layers": {"0": {"kernel": ...}}}`.

    Raises:
        TypeError: `build` is a module, or does not take the two arguments; on a call, it returned
            no `nnx.Module`, or the module's call takes no keyword of the flag's name.
        ValueError: on a call, the variables do not fit the module that `build` makes for such
            inputs, or the module needs random numbers in training and `key` is None.

    >>> network = from_nnx(lambda rngs, example: nnx.Linear(example.shape[-1], 2, rngs=rngs))
    >>> params, model_state = network.init(jax.random.key(0), jnp.ones((4, 3)))
    >>> jax.tree.map(jnp.shape, params)
    {'bias': (2,), 'kernel': (3, 2)}
    >>> network.apply(params, model_state, jnp.ones((4, 3)), key=None, train=False)[0].shape
    (4, 2)
    """
    _require_two_arguments(build)
    assemble = make_assembler(build)

    def init(key: jax.Array, example: PyTree) -> tuple[PyTree, PyTree]:
        rngs = nnx.Rngs(named_key(key, "default"), params=named_key(key, "params"))
        _, params, _, kept = _split(_build(build, rngs, shapes_of(example)))
        return _plain(params), _plain(kept)

    def apply(
        params: PyTree,
        model_state: PyTree,
        inputs: PyTree,
        *,
        key: jax.Array | None,
        train: bool,
    ) -> tuple[PyTree, PyTree]:
        module, seeds = assemble(params, model_state, inputs, key)
        flags = make_flag_kwargs(find_flags("from_nnx", module.__call__, train_flag), train=train)
        if not train:
            module.eval()
            return module(inputs, **flags), model_state
        module.train()
        outputs = module(inputs, **flags)
        _, _, used, kept = _split(module)
        if key is None:
            _require_unused(seeds, used)
        updated = _plain(kept)
        remedy = "a module must not add or reshape variables when it is called"
        require_fit("model_state after the call", model_state, updated, remedy=remedy)
        return outputs, updated

    return Network(init, apply)


def make_assembler(build: Build) -> Assemble:
    """Build a function that puts variables back into the module that `build` makes.

    It is `(params, model_state, inputs, key) -> (module, seeds)`: the module for inputs of these
    shapes, with these variables and every random stream seeded from the key, and the initial state
    of those streams.
    """

    @functools.lru_cache(maxsize=16)
    def structure(leaves: tuple[jax.ShapeDtypeStruct, ...], treedef: Any) -> Parts:
        shapes = jax.tree.unflatten(treedef, leaves)
        return _split(nnx.eval_shape(lambda: _build(build, nnx.Rngs(0), shapes)))

    def assemble(
        params: PyTree, model_state: PyTree, inputs: PyTree, key: jax.Array | None
    ) -> tuple[nnx.Module, nnx.State]:
        leaves, treedef = jax.tree.flatten(shapes_of(inputs))
        graphdef, param_shapes, random, kept_shapes = structure(tuple(leaves), treedef)
        seeds = _reseed_streams(random, key)
        module = nnx.merge(
            graphdef,
            _fill("params", param_shapes, params),
            _fill("model_state", kept_shapes, model_state),
            seeds,
            copy=True,
        )
        return module, seeds

    return assemble


def _require_two_arguments(build: Build) -> None:
    if isinstance(build, nnx.Module):
        name = type(build).__name__
        raise TypeError(
            "from_nnx takes a function that builds the module, since a network holds no variables; "
            f"got a module, of class {name}: write "
            f"from_nnx(lambda rngs, example: {name}(..., rngs=rngs))"
        )
    made: Any = build  # the signature of a module class itself is generic
    called = functools.partial(made.__init__, None) if isinstance(build, type) else build
    try:
        inspect.signature(called).bind(None, None)
    except TypeError as error:
        raise TypeError(
            f"from_nnx calls build(rngs, example), which {build!r} does not take ({error}); "
            "write from_nnx(lambda rngs, example: MyModule(rngs=rngs))"
        ) from error


def _build(build: Build, rngs: nnx.Rngs, shapes: PyTree) -> nnx.Module:
    module = build(rngs, shapes)
    if not isinstance(module, nnx.Module):
        raise TypeError(
            f"build must return an nnx.Module; got {type(module).__name__}; "
            "for another library see from_linen and Network"
        )
    for _, part in nnx.iter_modules(module):
        for name, value in list(vars(part).items()):
            # Under a trace NNX treats a bare array as a constant of the structure, not as data.
            if isinstance(value, jax.core.Tracer):
                setattr(part, name, nnx.data(value))
    return module


def _split(module: nnx.Module) -> Parts:
    graphdef, *states = nnx.split(module, nnx.Param, nnx.RngState, nnx.Intermediate, ...)
    params, random, _, kept = states
    return graphdef, params, random, kept


def _plain(state: nnx.State) -> dict[str, Any]:
    """Convert a state to nested dicts of arrays, with string keys (NNX numbers its lists)."""
    plain = {}
    for path, leaf in nnx.to_flat_state(state):
        value = leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf
        plain[tuple(map(str, path))] = jax.tree.map(_array, value)
    return traverse_util.unflatten_dict(plain)


def _array(value: Any) -> Any:
    if isinstance(value, jax.Array | jax.ShapeDtypeStruct):
        return value
    return jnp.array(value, jnp.result_type(value))  # an explicit dtype is not weak


def _fill(name: str, abstract: nnx.State, plain: PyTree) -> nnx.State:
    """Put the arrays of nested dicts into a state of shapes."""
    remedy = "pass the result of init for inputs like these (only the batch size may differ)"
    require_fit(name, _plain(abstract), plain, remedy=remedy)
    filled = []
    for path, leaf in nnx.to_flat_state(abstract):
        value = functools.reduce(operator.getitem, map(str, path), plain)
        filled.append((path, leaf.replace(value) if isinstance(leaf, nnx.Variable) else value))
    return nnx.from_flat_state(filled)


def _reseed_streams(random: nnx.State, key: jax.Array | None) -> nnx.State:
    """Seed each random stream from the key and the stream's path."""
    seeded = []
    for path, variable in nnx.to_flat_state(random):
        shape = variable.get_value().shape
        if isinstance(variable, nnx.RngKey):
            root = jax.random.key(0) if key is None else key
            value = named_key(root, "/".join(map(str, path)))
            value = jax.random.split(value, shape) if shape else value
        else:
            value = jnp.zeros(shape, jnp.uint32)
        seeded.append((path, variable.replace(value)))
    return nnx.from_flat_state(seeded)


def _require_unused(seeds: nnx.State, used: nnx.State) -> None:
    """Check that no stream was used: using one replaces its count."""
    before = dict(nnx.to_flat_state(seeds))
    for path, variable in nnx.to_flat_state(used):
        if variable.get_value() is not before[path].get_value():
            stream = "/".join(map(str, path[:-1]))
            raise ValueError(
                f"the module draws random numbers in training (from {stream}) and key is None; "
                "pass apply a typed key, such as state.key('network')"
            )
