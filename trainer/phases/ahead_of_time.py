"""Ahead-of-time compilation, except in JAX's debug modes, which must look into each call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax


def is_debug_mode() -> bool:
    """Return whether JAX inspects each call: `jax.debug_nans`, `debug_infs`, `disable_jit`.

    A function compiled ahead of time cannot be inspected: JAX names no operation, or refuses it.
    """
    names = "jax_debug_nans", "jax_debug_infs", "jax_disable_jit"
    return any(getattr(jax.config, name) for name in names)


def compile_ahead(
    function: Callable[..., Any], *arguments: Any, donate_argnums: tuple[int, ...] = ()
) -> Callable[..., Any]:
    """Compile a function for arguments like these; in a debug mode of JAX only jit it.

    A debug mode donates nothing: to find the operation that returned a nan, JAX calls the function
    again with the same arguments.

    >>> import jax.numpy as jnp
    >>> float(compile_ahead(jnp.sum, jnp.ones(3))(jnp.ones(3)))
    3.0
    """
    if is_debug_mode():
        return jax.jit(function)
    return jax.jit(function, donate_argnums=donate_argnums).lower(*arguments).compile()
