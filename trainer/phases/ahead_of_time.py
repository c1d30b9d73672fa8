"""Compiling ahead of the first call, and not where JAX was told to look into each call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax


def is_debug_mode() -> bool:
    """Say whether JAX shall look into each call: `jax.debug_nans`, `debug_infs`, `disable_jit`.

    What was compiled ahead cannot be looked into: it would name no operation, or is refused.
    """
    names = "jax_debug_nans", "jax_debug_infs", "jax_disable_jit"
    return any(getattr(jax.config, name) for name in names)


def compile_ahead(
    function: Callable[..., Any], *arguments: Any, donate_argnums: tuple[int, ...] = ()
) -> Callable[..., Any]:
    """Compile a function for arguments like these; where JAX looks into calls, just jit it.

    Donating is for compiled programs alone: to find the operation that gave a nan, JAX calls the
    function again with the same arguments.

    >>> import jax.numpy as jnp
    >>> float(compile_ahead(jnp.sum, jnp.ones(3))(jnp.ones(3)))
    3.0
    """
    if is_debug_mode():
        return jax.jit(function)
    return jax.jit(function, donate_argnums=donate_argnums).lower(*arguments).compile()
