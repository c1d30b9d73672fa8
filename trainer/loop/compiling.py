"""Compilation before the first epoch: of all phases, and of what hooks run, side by side."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from trainer.hook import Hook
from trainer.host.computed_once import ComputedOnce
from trainer.host.exception_notes import annotate_errors
from trainer.phases.compilation import compile_side_by_side
from trainer.phases.compiled_phase import CompiledPhase
from trainer.phases.phase import Phase
from trainer.state import TrainState

log = logging.getLogger("entracte")


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
        output = phase.infer_shapes(state, output, donate=donate).output
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
