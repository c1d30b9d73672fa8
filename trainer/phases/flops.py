"""Counting the operations of matrix products and convolutions in a computation."""

from __future__ import annotations

import math
from typing import Any

from trainer.phases.executors import find_inner_jaxprs


def count_flops(jaxpr: Any) -> int:
    """Count the operations of matrix products and convolutions, loops as often as they run.

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
            holes = math.prod(params["lhs_dilation"])  # zeros between, which nobody multiplies
            total += 2 * math.prod(equation.outvars[0].aval.shape) * pairs // holes
        elif name == "cond":
            total += max(map(count_flops, params["branches"]))
        else:
            times = params["length"] if name == "scan" else 1
            total += times * sum(map(count_flops, find_inner_jaxprs(params.values())))
    return total
