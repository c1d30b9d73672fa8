"""The persistent compilation cache: a second start compiles nothing anew."""

from __future__ import annotations

import os

import jax
from jax.experimental.compilation_cache import compilation_cache

from trainer.checks.paths import to_absolute_path


def cache_compilations(directory: str | os.PathLike[str]) -> None:
    """Keep compiled programs in a directory, for this and later processes.

    Call it once, before anything is compiled. It holds for all that JAX compiles in this process.

    Args:
        directory: made if absent; may be shared by runs.
    """
    path = to_absolute_path(directory, "cache_compilations")
    path.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    compilation_cache.reset_cache()
