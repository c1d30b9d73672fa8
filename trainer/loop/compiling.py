"""Compilation of a run's phases before its first epoch."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from trainer.phases.compiled_phase import CompiledPhase
from trainer.phases.phase import Phase
from trainer.state import TrainState

log = logging.getLogger("entracte")


def compile_phases(
    phases: Sequence[Phase], state: TrainState, *, donate: bool
) -> list[CompiledPhase]:
    """Compile the phases of an epoch, in order, and log how long each took."""
    compiled, output = [], None
    for phase in phases:
        started = time.perf_counter()
        example = phase.feed.example if phase.feed else output
        compiled.append(phase.get_compiled(state, example, donate=donate))
        seconds, choice = time.perf_counter() - started, compiled[-1].choice
        log.debug("%s: compiled in %.2f s; executor %s, %s", phase.name, seconds, *choice)
        output, _ = phase.infer_shapes(state, output, donate=donate)
    return compiled
