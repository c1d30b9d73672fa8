"""Checks of the networks and examples that `supervised` and `ppo` receive."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from trainer.checks.pytrees import describe_leaf

_REMEDIES = {
    "flax.linen.": "models.from_linen(module)",
    "flax.nnx.": "models.from_nnx(lambda rngs, example: {name}(..., rngs=rngs))",
    "equinox.": "two functions around it, as docs/how_to/training/bring_a_network.md shows",
    "torch.": "the same network of models, or of Flax",
}
"""By library, how to make a network of its modules."""


def check_network(network: Any, who: str) -> None:
    """Check that a network is a pair of functions, before it is used.

    Raises:
        TypeError: it is a module of a library, a single function, or something else.

    >>> check_network(lambda params, inputs: inputs @ params, "supervised")
    Traceback (most recent call last):
        ...
    TypeError: supervised needs a network, a pair of functions (init, apply) as models.Network
    describes; got a function, <lambda>: pass models.Network(init, apply), where init makes the
    parameters
    """
    kind = network if isinstance(network, type) else type(network)
    modules = [f"{base.__module__}." for base in kind.__mro__]
    for library, remedy in _REMEDIES.items():
        if any(module.startswith(library) for module in modules):
            remedy = remedy.format(name=kind.__name__)
            break
    else:
        if all(callable(getattr(network, name, None)) for name in ("init", "apply")):
            return
        remedy = "models.Network(init, apply), where init makes the parameters"
        if _makes_networks(network):
            remedy = f"its result: call it, {network.__name__}(...)"
    raise TypeError(
        f"{who} needs a network, a pair of functions (init, apply) as models.Network describes; "
        f"got {_describe(network)}: pass {remedy}"
    )


def _makes_networks(function: Any) -> bool:
    """Return whether a function returns a network, by its annotation: `models.mlp`."""
    hint = getattr(function, "__annotations__", {}).get("return")
    name = hint if isinstance(hint, str) else getattr(hint, "__name__", "")
    return name.rpartition(".")[2] == "Network" and hasattr(function, "__name__")


def check_pair(network: Any, name: str, returned: Any) -> tuple[Any, Any]:
    """Check that a network's function returned a pair; unpacking alone would split an array.

    Raises:
        TypeError: it returned something else.

    >>> check_pair(None, "apply", (1.0, {}))
    (1.0, {})
    """
    if isinstance(returned, tuple) and len(returned) == 2:
        return returned
    wanted = "(params, model_state)" if name == "init" else "(outputs, model_state)"
    raise TypeError(
        f"the network's {name} must return {wanted}, with {{}} for an empty model_state, as "
        f"models.Network describes; {name} of {_describe(network)} returned "
        f"{describe_leaf(returned)}"
    )


def check_example(
    example: Any,
    takes: str = "task.init takes a key and",
    call: str = "task.init(key, {example})",
) -> None:
    """Check that an example batch is a batch.

    Args:
        example: what was passed.
        takes: who takes what before it, as messages begin.
        call: the right call, with `{example}` in it.

    Raises:
        TypeError: it is no dict.
        ValueError: it has no `inputs`.
    """
    if not isinstance(example, Mapping):
        got, remedy = describe_leaf(example), "{'inputs': x}"
        if isinstance(getattr(example, "example", None), Mapping):
            got, remedy = f"a source, {got}", "source.example"
        raise TypeError(
            f"{takes} an example batch, a dict of arrays with 'inputs' for the network; got {got}: "
            f"call {call.format(example=remedy)}"
        )
    if "inputs" not in example:
        raise ValueError(f"a batch needs 'inputs' for the network; got {sorted(example)}")


def _describe(network: Any) -> str:
    function = inspect.unwrap(network)  # a loss wraps its function
    if inspect.isfunction(function) or inspect.ismethod(function):
        return f"a function, {function.__name__}"
    if isinstance(network, type):
        return f"the class {network.__module__}.{network.__qualname__}"
    return f"{type(network).__module__}.{type(network).__qualname__}"
