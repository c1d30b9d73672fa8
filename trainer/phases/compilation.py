"""Compilation ahead of time, except in JAX's debug modes, and its cache across processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from trainer.checks.paths import to_absolute_path


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


def cache_compilations(directory: str | os.PathLike[str]) -> None:
    """Cache compiled functions in a directory, for this and later processes.

    Call it once, before anything is compiled. It applies to all that JAX compiles in this process.

    Args:
        directory: created if absent; runs may share it.
    """
    path = to_absolute_path(directory, "cache_compilations")
    path.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    compilation_cache.reset_cache()
