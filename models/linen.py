"""Networks of Flax Linen modules."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import operator
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import core, linen
from flax.errors import InvalidRngError

from models.argument_checks import require_fit
from models.network import Network, PyTree, named_key, shapes_of
from models.train_flags import AUTO, check_call, find_flags, known_flags, make_flag_kwargs


def from_linen(module: linen.Module, *, train_flag: str | None = AUTO) -> Network:
    """Build a network from a Flax Linen module, called as `module(inputs)`.

    The parameters are the collection `params`; the model state is all other collections that
    `init` makes, `{"batch_stats": {...}}` for instance. They are mutable in training only.
    Partitioning metadata is removed, since parameters are plain arrays.

    A train flag tells the module whether it trains: a keyword of its `__call__`, or else a field.
    Flags are found by their names: `train`, `training`, `is_training`, and for the opposite
    `deterministic`, `eval`, `inference`, `use_running_average` (all in `models/train_flags.py`).
    Random numbers come from `key`: the streams `params` and `dropout` by name; Linen derives other
    streams from that of `params`, which `apply` uses for nothing else.

    Args:
        module: a Linen module, unbound.
        train_flag: name of a keyword of `__call__`, for a flag with another name or one in
            `**kwargs`: `"learning"` is true in training, `"not frozen"` false. None: no flag; the
            module does the same in training and evaluation.

    Returns:
        The network.

    Raises:
        TypeError: `module` is no Linen module, or its `__call__` needs more than inputs and flags.
        ValueError: from `init`, no flag is found and the module has inactive dropout or batch
            statistics that do not change; on a call, the module needs random numbers and `key` is
            None, or it changed the structure of the model state.

    >>> network = from_linen(linen.Dense(2))
    >>> params, model_state = network.init(jax.random.key(0), jnp.ones((4, 3)))
    >>> jax.tree.map(jnp.shape, params), model_state
    ({'bias': (2,), 'kernel': (3, 2)}, {})
    >>> network.apply(params, model_state, jnp.ones((4, 3)), key=None, train=False)[0].shape
    (4, 2)
    """
    if not isinstance(module, linen.Module):
        kind = f"the class {module.__name__}" if isinstance(module, type) else type(module).__name__
        raise TypeError(
            f"from_linen takes a flax.linen module, such as linen.Dense(2); got {kind}; "
            "for an nnx.Module see from_nnx"
        )
    flags = find_flags("from_linen", module.__call__, train_flag)
    of_fields = train_flag == AUTO and not flags
    if of_fields:
        flags = known_flags(field.name for field in dataclasses.fields(module))
    unsure = train_flag == AUTO and not flags
    check_call("from_linen", module.__call__, {} if of_fields else flags)

    def set_flags(train: bool) -> tuple[linen.Module, dict[str, Any]]:
        keywords: dict[str, Any] = make_flag_kwargs(flags, train=train)
        return (module.clone(**keywords), {}) if of_fields else (module, keywords)

    def init(key: jax.Array, example: PyTree) -> tuple[PyTree, PyTree]:
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes_of(example))
        evaluated, keywords = set_flags(train=False)
        with _list_inactive_parts() as inactive:
            variables = _plain(evaluated.init(_streams(key), zeros, **keywords))
        if unsure and "batch_stats" in variables and not inactive:
            updated = evaluated.apply(
                variables, zeros, rngs=_streams(key), mutable=["batch_stats"]
            )[1]
            same = jax.tree.map(
                operator.is_, variables["batch_stats"], _plain(updated["batch_stats"])
            )
            if jax.tree.all(same):
                inactive.append("batch_stats, which a call does not update")
        if unsure and inactive:
            raise ValueError(
                f"from_linen finds no flag that tells {type(module).__name__} whether it trains, "
                f"and parts of it are in evaluation mode: {', '.join(inactive)}. Its __call__ "
                f"takes ({', '.join(inspect.signature(module.__call__).parameters)}): name the "
                "flag, from_linen(module, train_flag='is_training'), or 'not frozen' for one that "
                "is false in training; train_flag=None if training should equal evaluation"
            )
        return variables.pop("params", {}), variables

    def apply(
        params: PyTree,
        model_state: PyTree,
        inputs: PyTree,
        *,
        key: jax.Array | None,
        train: bool,
    ) -> tuple[PyTree, PyTree]:
        flagged, keywords = set_flags(train)
        try:
            outputs, updated = flagged.apply(
                {"params": params, **model_state},
                inputs,
                rngs=_streams(key),
                mutable=list(model_state) if train else [],
                **keywords,
            )
        except InvalidRngError as error:
            if key is not None:
                raise
            raise ValueError(
                "the module draws random numbers and key is None; pass apply a typed key, such as "
                f"state.key('network') ({error})"
            ) from error
        updated = {**model_state, **_plain(updated)}
        remedy = "a module must not add or reshape variables when it is called"
        require_fit("model_state after the call", model_state, updated, remedy=remedy)
        return outputs, updated

    return Network(init, apply)


@contextlib.contextmanager
def _list_inactive_parts() -> Iterator[list[str]]:
    """List the dropouts and batch normalisations that are called in evaluation mode."""
    inactive: list[str] = []
    names = {linen.Dropout: "deterministic", linen.BatchNorm: "use_running_average"}

    def intercept(function: Any, arguments: Any, keywords: Any, context: Any) -> Any:
        part = context.module
        kind = next((kind for kind in names if isinstance(part, kind)), None)
        if kind is not None and context.method_name == "__call__":
            bound = inspect.signature(kind.__call__).bind(part, *arguments, **keywords)
            own, passed = getattr(part, names[kind]), bound.arguments.get(names[kind])
            if (own is True or passed is True) and getattr(part, "rate", True):
                inactive.append("/".join((*part.path, f"{kind.__name__}({names[kind]}=True)")))
        return function(*arguments, **keywords)

    with linen.intercept_methods(intercept):
        yield inactive


def _streams(key: jax.Array | None) -> dict[str, jax.Array]:
    return {} if key is None else {name: named_key(key, name) for name in ("params", "dropout")}


def _plain(variables: Any) -> dict[str, Any]:
    """Convert collections to nested dicts of arrays, without Linen's boxes."""
    return core.unfreeze(linen.meta.unbox(variables))
