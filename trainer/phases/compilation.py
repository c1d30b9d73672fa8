"""Compilation ahead of time, except in JAX's debug modes, and its caches."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent import futures
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from trainer.checks.paths import to_absolute_path
from trainer.host.computed_once import ComputedOnce
from trainer.host.time_spans import span

log = logging.getLogger("entracte")


def is_debug_mode() -> bool:
    """Return whether JAX inspects each call: `jax.debug_nans`, `debug_infs`, `disable_jit`.

    A function compiled ahead of time cannot be inspected: JAX names no operation, or refuses it.
    """
    names = "jax_debug_nans", "jax_debug_infs", "jax_disable_jit"
    return any(getattr(jax.config, name) for name in names)


def jit_inspected(function: Callable[..., Any]) -> Callable[..., Any]:
    """Jit a function whose calls JAX inspects for nan and infinity, as its configuration says.

    A mode that `jax.config.update` set is set again for each call: once a context such as
    `jax.debug_nans` has ended in a thread, and JAX opens some itself, that thread is no longer
    inspected (jax 0.10 to 0.12).
    """
    jitted = jax.jit(function)

    def call(*arguments: Any) -> Any:
        nans, infs = (getattr(jax.config, name) for name in ("jax_debug_nans", "jax_debug_infs"))
        with jax.debug_nans(nans), jax.debug_infs(infs):
            return jitted(*arguments)

    return call


def lower_ahead(
    function: Callable[..., Any],
    *arguments: Any,
    donate_argnums: tuple[int, ...] = (),
    **options: Any,
) -> Callable[[], Callable[..., Any]]:
    """Lower a function for arguments like these, with options of `jax.jit`.

    In a debug mode of JAX it is only jitted.

    A debug mode donates nothing: to find the operation that returned a nan, JAX calls the function
    again with the same arguments.

    Returns:
        A function that compiles it, on any thread.

    >>> import jax.numpy as jnp
    >>> compile_sum = lower_ahead(jnp.sum, jnp.ones(3))
    >>> float(compile_sum()(jnp.ones(3)))
    3.0
    """
    if is_debug_mode():
        return lambda: jit_inspected(function)
    return jax.jit(function, donate_argnums=donate_argnums, **options).lower(*arguments).compile


@contextlib.contextmanager
def pause_gc() -> Iterator[None]:
    """Collect no cyclic garbage in a `with` block, or in a decorated function.

    Tracing a step allocates so many objects that are kept that Python searches all objects of the
    process for garbage, again and again: a third of the time that a run needs until it trains.
    It applies to all threads. Where collection is off already, it stays off.

    >>> import gc
    >>> with pause_gc():
    ...     print(gc.isenabled())
    False
    >>> gc.isenabled()
    True
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def cache_compilations(directory: str | os.PathLike[str]) -> None:
    """Cache compiled functions in a directory, for this and later processes.

    Call it once, before anything is compiled. It applies to all that JAX compiles in this process.
    If the environment names a directory, `JAX_COMPILATION_CACHE_DIR`, that one is used.

    Args:
        directory: created if absent; runs may share it.
    """
    path = to_absolute_path(directory, "cache_compilations")
    named = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if not named:
        path.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", named or str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    compilation_cache.reset_cache()


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
    """The traces and compilations of one computation, by the signature of state and data."""

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
    settings = jax.config.values  # has also those that no thread can set for itself
    return tuple(getattr(jax.config, name, settings.get(name)) for name in SETTINGS)


NOTICE_AFTER = 3.0
"""Seconds of compilation after which a notice says what is compiled."""


def compile_side_by_side(pending: Mapping[str, ComputedOnce[Any]]) -> None:
    """Compile several functions, each on a thread, and wait for all.

    One after another in a debug mode of JAX, on several processes, which must agree on the order,
    and where settings of JAX hold for this thread alone, as in `with jax.enable_x64():`.

    >>> sums = {"train": ComputedOnce(lambda: 1 + 1), "val": ComputedOnce(lambda: 2 + 2)}
    >>> compile_side_by_side(sums)
    >>> sums["val"].known
    True
    """
    pending = {name: one for name, one in pending.items() if not one.known}
    if is_debug_mode() or jax.process_count() > 1 or not pending:
        _compile_in_turn(pending)
        return
    with futures.ThreadPoolExecutor(len(pending), "compile") as threads:
        if threads.submit(read_jax_settings).result() != read_jax_settings():
            _compile_in_turn(pending)
            return
        running = {name: threads.submit(one.get) for name, one in pending.items()}
        began, said = time.monotonic(), False
        for name, one in running.items():
            with span("compile", name):
                left = NOTICE_AFTER - (time.monotonic() - began)
                futures.wait([one], timeout=max(left, 0.0))
                if not (said or one.done()):
                    unfinished = [name for name, each in running.items() if not each.done()]
                    log.info("compiling %s", ", ".join(unfinished))
                    said = True
                one.result()


def _compile_in_turn(pending: Mapping[str, ComputedOnce[Any]]) -> None:
    for name, one in pending.items():
        with span("compile", name):
            one.get()
