"""Compiled functions shared by phases that compute the same, such as those of several folds."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

import jax

KEPT = 8
"""Computations cached on a step function, the last used ones; phases also keep their own."""

ATTRIBUTE = "_entracte_compiled"

SETTINGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_numpy_dtype_promotion",
    "jax_numpy_rank_promotion",
    "jax_debug_nans",
    "jax_debug_infs",
    "jax_disable_jit",
    "jax_disable_most_optimizations",
    "jax_threefry_partitionable",
)
"""Settings of JAX that change a compiled function."""


@dataclasses.dataclass(frozen=True)
class SharedCache:
    """The traces and compiled phases of one computation, by the signature of state and data."""

    traces: dict[Any, Any] = dataclasses.field(default_factory=dict)
    compiled: dict[Any, Any] = dataclasses.field(default_factory=dict)


def get_shared_cache(run: Any, *settings: Hashable) -> SharedCache:
    """Return the cache of a computation; it is empty at first.

    The cache is an attribute of the function `run.owner`, and lives as long as that one: a compiled
    function holds no data and no state. A `run` without an owner shares nothing, nor does one whose
    owner accepts no attributes.

    Args:
        run: the computation; equal ones compute the same.
        settings: other properties that distinguish computations.

    >>> import functools
    >>> class Twice(functools.partial):
    ...     owner = property(lambda self: self.func)
    >>> def step(): ...
    >>> run = Twice(step)
    >>> (get_shared_cache(run) is get_shared_cache(run),
    ...  get_shared_cache(run) is get_shared_cache(run, "scan"))
    (True, False)
    >>> get_shared_cache(step) is get_shared_cache(step)
    False
    """
    owner = getattr(run, "owner", None)
    if owner is None or any(_closes_over(getattr(run, name, None)) for name in ("rows", "batch")):
        return SharedCache()
    try:
        kept: OrderedDict[Hashable, SharedCache] | None = getattr(owner, ATTRIBUTE, None)
        if kept is None:
            kept = OrderedDict()
            setattr(owner, ATTRIBUTE, kept)
        cache = kept.setdefault((run, settings), SharedCache())
    except (AttributeError, TypeError):  # a bound method, say; or what has no hash
        return SharedCache()
    kept.move_to_end((run, settings))
    while len(kept) > KEPT:
        kept.popitem(last=False)
    return cache


def _closes_over(function: Any) -> bool:
    """Return whether a function may hold data: a closure, a method, or a record of such."""
    if isinstance(function, tuple):
        return any(map(_closes_over, function))
    if dataclasses.is_dataclass(function):
        return any(_closes_over(getattr(function, f.name)) for f in dataclasses.fields(function))
    return getattr(function, "__closure__", None) is not None or hasattr(function, "__self__")


def read_jax_settings() -> tuple[Any, ...]:
    """Return the settings that JAX compiles by, in this thread and at this moment."""
    return tuple(getattr(jax.config, name, None) for name in SETTINGS)
