"""Analysis of jaxprs: convolutions, loops, and the operations of matrix products."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any


def find_inner_jaxprs(params: Any) -> Iterator[Any]:
    """Yield the jaxprs among the parameters of an equation."""
    for value in params:
        if hasattr(getattr(value, "jaxpr", value), "eqns"):
            yield value
        elif isinstance(value, tuple | list):
            yield from find_inner_jaxprs(value)


def has_convolution(jaxpr: Any) -> bool:
    """Return whether a jaxpr contains a convolution at any depth.

    >>> import jax, jax.numpy as jnp
    >>> signal = jnp.ones(8)
    >>> has_convolution(jax.make_jaxpr(jax.jit(lambda x: jnp.convolve(x, signal)))(signal))
    True
    >>> has_convolution(jax.make_jaxpr(lambda x: x @ x)(signal))
    False
    """
    return any(
        equation.primitive.name == "conv_general_dilated"
        or any(map(has_convolution, find_inner_jaxprs(equation.params.values())))
        for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns
    )


def find_outer_scans(jaxpr: Any) -> Iterator[tuple[int, Any]]:
    """Yield (length, body) of each outermost scan."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if equation.primitive.name == "scan":
            yield equation.params["length"], equation.params["jaxpr"]
        else:
            for inner in find_inner_jaxprs(equation.params.values()):
                yield from find_outer_scans(inner)


def count_flops(jaxpr: Any) -> int:
    """Count the operations of matrix products and convolutions; a loop counts as often as it runs.

    >>> import jax, jax.numpy as jnp
    >>> def layers(x, weights):
    ...     return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]
    >>> count_flops(jax.make_jaxpr(layers)(jnp.ones((8, 16)), jnp.ones((4, 16, 16))))
    16384
    """
    total = 0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            pairs = math.prod(shape[axis] for axis in contracted)
            total += 2 * math.prod(equation.outvars[0].aval.shape) * pairs
        elif name == "conv_general_dilated":
            kernel, numbers = equation.invars[1].aval.shape, params["dimension_numbers"]
            pairs = math.prod(kernel) // kernel[numbers.rhs_spec[0]]
            holes = math.prod(params["lhs_dilation"])  # zeros between, which are not multiplied
            total += 2 * math.prod(equation.outvars[0].aval.shape) * pairs // holes
        elif name == "cond":
            total += max(map(count_flops, params["branches"]))
        else:
            times = params["length"] if name == "scan" else 1
            total += times * sum(map(count_flops, find_inner_jaxprs(params.values())))
    return total
