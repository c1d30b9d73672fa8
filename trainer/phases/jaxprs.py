"""Analysis of jaxprs: convolutions, loops, operations of matrix products, and rows that mix."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax

from trainer.state import PyTree


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


ROWS = 1009
"""Rows to trace with: a prime; an axis whose size it divides is an axis of rows."""

ALONG = ("axis", "dimension", "axes", "dimensions")
"""Parameters that name axes, of primitives such as `cumsum`, `sort`, `reduce_sum`, `rev`."""

OPAQUE = ("pure_callback", "io_callback", "ffi_call", "custom_call", "pallas_call")
"""Primitives whose computation cannot be inspected."""


def can_mix_rows(function: Callable[..., Any], state: PyTree, batch: PyTree) -> bool:
    """Return whether a row of a function's result may depend on other rows of its batch.

    False is certain, except for reshapes that scatter a row over an axis which is then reduced;
    True needs a trial. It traces the function, `(state, batch) -> outputs`, once and compiles none.

    >>> import jax.numpy as jnp
    >>> x = jnp.ones((4, 3))
    >>> can_mix_rows(lambda w, x: jax.nn.softmax(x @ w), jnp.ones((3, 2)), x)
    False
    >>> can_mix_rows(lambda w, x: x - x.mean(0), None, x)
    True
    """
    try:
        traced = jax.make_jaxpr(function)(state, of_rows(batch, ROWS))
    except Exception:  # it may refuse this batch size: a trial with a real batch is needed
        return True
    return _mixes(traced.jaxpr)


def of_rows(batch: PyTree, rows: int) -> PyTree:
    """Return the shapes of a batch with so many rows, in the dtypes of JAX for host arrays.

    >>> import numpy as np
    >>> of_rows({"inputs": np.zeros((4, 3))}, 1)
    {'inputs': ShapeDtypeStruct(shape=(1, 3), dtype=float32)}
    """

    def shape(array: Any) -> jax.ShapeDtypeStruct:
        dtype = jax.dtypes.canonicalize_dtype(array.dtype, allow_extended_dtype=True)
        return jax.ShapeDtypeStruct((rows, *array.shape[1:]), dtype)

    return jax.tree.map(shape, batch)


def _mixes(jaxpr: Any) -> bool:
    return any(map(_joins_rows, jaxpr.eqns))


def _joins_rows(equation: Any) -> bool:
    """Return whether an operation may combine rows; if not, each result keeps one axis of rows."""
    name, params = equation.primitive.name, equation.params
    if name in OPAQUE or (name == "scan" and _is_rows(params["length"])):
        return True
    inner = list(find_inner_jaxprs(params.values()))
    if inner and not name.startswith(("scatter", "reduce", "select_and")):
        return any(_mixes(getattr(one, "jaxpr", one)) for one in inner)
    given = [_shape(variable) for variable in equation.invars]
    made = [_shape(variable) for variable in equation.outvars]
    if not any(map(_axes_of_rows, given)):
        return False
    if any(_axes_of_rows(shape) > 1 for shape in given) or any(_axes_of_rows(s) != 1 for s in made):
        return True  # an axis of rows is gone, or rows are paired with rows
    if name in ("gather", "dynamic_slice", "conv_general_dilated"):
        which = 0 if name == "conv_general_dilated" else 1
        if _axes_of_rows(given[1 - which]):  # the kernel, or the operand that is indexed, has rows
            return True
    return any(_runs_along(name, params, shape, made[0]) for shape in given if _axes_of_rows(shape))


def _runs_along(name: str, params: Any, shape: tuple[int, ...], made: tuple[int, ...]) -> bool:
    """Return whether an operation runs along the only axis of rows of an array."""
    place = _place(shape)
    if name == "reshape":
        return math.prod(shape[:place]) != math.prod(made[: _place(made)])
    if name == "conv_general_dilated":
        return bool(params["dimension_numbers"].lhs_spec[0] != place)
    if name == "fft":
        return place >= len(shape) - len(params["fft_lengths"])
    if "window_dimensions" in params:
        return bool(params["window_dimensions"][place] != 1)
    if name == "concatenate":
        return False  # rows that are concatenated are not combined yet
    along = [params[key] for key in ALONG if params.get(key) is not None]
    return any(place in (one if isinstance(one, tuple) else (one,)) for one in along)


def _axes_of_rows(shape: tuple[int, ...]) -> int:
    return sum(map(_is_rows, shape))


def _place(shape: tuple[int, ...]) -> int:
    return next(axis for axis, size in enumerate(shape) if _is_rows(size))


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(getattr(value.aval, "shape", ()))


def _is_rows(size: Any) -> bool:
    return isinstance(size, int) and size > 0 and size % ROWS == 0
