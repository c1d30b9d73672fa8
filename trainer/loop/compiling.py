"""Compilation before the first epoch: of all phases, and of what hooks run, side by side."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from concurrent import futures
from typing import Any

import jax

from trainer.hook import Hook
from trainer.host.computed_once import ComputedOnce
from trainer.host.exception_notes import annotate_errors
from trainer.host.time_spans import span
from trainer.phases.compilation import is_debug_mode, read_jax_settings
from trainer.phases.compiled_phase import CompiledPhase
from trainer.phases.phase import Phase
from trainer.state import TrainState

log = logging.getLogger("entracte")

NOTICE_AFTER = 3.0
"""Seconds of compilation after which a notice says what is compiled."""


def compile_phases(
    phases: Sequence[Phase], hooks: Sequence[Hook], state: TrainState, *, donate: bool
) -> list[CompiledPhase]:
    """Compile the phases of an epoch and what hooks run, and log how long it took.

    All is traced one after another, which takes Python's lock, and compiled side by side. It ends
    before anything trains: XLA on a GPU measures kernels while it compiles.

    Returns:
        The phases of the epoch, compiled.
    """
    started = time.perf_counter()
    lowered, output = list[ComputedOnce[CompiledPhase]](), None
    for phase in phases:
        example = phase.feed.example if phase.feed else output
        lowered.append(phase.lower(state, example, donate=donate))
        output, _ = phase.infer_shapes(state, output, donate=donate)
    names = [phase.name for phase in phases]
    pending: dict[str, ComputedOnce[Any]] = dict(zip(names, lowered, strict=True))
    for hook in hooks:
        if hook.lower is not None:
            with annotate_errors(f"in compiling for hook {hook.name!r}"):
                pending[hook.name] = hook.lower(state)
    pending = {name: one for name, one in pending.items() if not one.known}
    compile_side_by_side(pending)
    if pending:
        log.info("compiled %s in %.1f s", ", ".join(pending), time.perf_counter() - started)
    compiled = [one.get() for one in lowered]
    for name, program in zip(names, compiled, strict=True):
        log.debug("%s: executor %s, %s", name, *program.choice)
    return compiled


def compile_side_by_side(pending: Mapping[str, ComputedOnce[Any]]) -> None:
    """Compile several functions, each on a thread, and wait for all.

    One after another in a debug mode of JAX, on several processes, which must agree on the order,
    and where settings of JAX hold for this thread alone, as in `with jax.enable_x64():`.

    >>> sums = {"train": ComputedOnce(lambda: 1 + 1), "val": ComputedOnce(lambda: 2 + 2)}
    >>> compile_side_by_side(sums)
    >>> sums["val"].known
    True
    """
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
