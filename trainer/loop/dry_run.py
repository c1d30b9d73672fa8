"""A rehearsal: one step of each phase and one call of each hook, before a long run begins."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from trainer.hook import Gate, Hook
from trainer.host.processes import from_main_process
from trainer.loop.events import HookRunner
from trainer.phases.compilation import compile_ahead
from trainer.phases.compiled_phase import CompiledPhase
from trainer.phases.executors import ExecutorChoice, ScannedStep
from trainer.phases.metrics import Metrics
from trainer.phases.packed import PackedLayout, get_shapes, pack
from trainer.phases.phase import PendingMetrics, Phase
from trainer.phases.state_buffers import copy_state
from trainer.state import PyTree, TrainState, attach_host_fields, strip_host_fields

log = logging.getLogger("entracte")


def run_dry(
    state: TrainState, phases: Sequence[Phase], events: HookRunner, *, epochs: int, donate: bool
) -> None:
    """Go through a whole epoch in small, on real data, and throw away what comes of it.

    One step of each phase is compiled and run (a phase that was written by hand is run on its first
    piece of data), then every hook of `start`, the phases, `epoch` and `end` is called, whether or
    not it would be due, with what was measured. What hooks give back is checked as in the run, and
    goes to those after them. `Interrupt` and `stop` end nothing. A hook that declares `run_dry`
    has that called in its place; one that commits and does not is left out.

    Args:
        state: to begin the run with; left as it is.
        phases: of the program.
        events: the run's hooks.
        epochs: the total that the run goes to.
        donate: as the run will; what it donates here are copies.
    """
    began, where = time.perf_counter(), "at the start"
    called: set[str] = set()
    trial = HookRunner(_make_trial_hooks(events.hooks, called), [phase.name for phase in phases])
    values: dict[str, float] = {}
    traces: dict[str, np.ndarray] = {}
    output, taken = None, 0
    try:
        state, _ = trial.run("start", state, Metrics(epochs=epochs))
        for phase in phases:
            where = f"phase {phase.name!r}"
            state, output, measured = run_first_step(phase, state, output, donate=donate)
            numbers, steps, count = measured.read()
            values, traces, taken = values | numbers, traces | steps, taken + count
            metrics = Metrics(values, steps=traces, output=output, epochs=epochs)
            where = f"hooks at {phase.name!r}"
            state, _ = trial.run(phase.name, state, metrics)
        where = "hooks at the end of the epoch"
        seconds = time.perf_counter() - began
        times = {"time/epoch_seconds": seconds, "time/steps_per_second": taken / seconds}
        values |= from_main_process(times | trial.pop_hook_times())
        metrics = Metrics(values, steps=traces, output=output, epochs=epochs)
        state, metrics = trial.run("epoch", state.replace(epoch=state.epoch + 1), metrics)
        trial.flush()  # what runs in the background ends, and fails, within the check
        where = "hooks at the end of the run"
        trial.run("end", state, metrics)
    except Exception as error:
        error.add_note(f"in the check before the run ({where}); nothing was trained or recorded")
        raise
    _tell(phases, trial.hooks, called, time.perf_counter() - began)


def run_first_step(
    phase: Phase, state: TrainState, previous: PyTree = None, *, donate: bool = False
) -> tuple[TrainState, PyTree, PendingMetrics]:
    """Run a phase's first step alone; the first piece of one by hand, or of a population.

    Args:
        phase: of `training` or `evaluation`, or written by hand.
        state: to run on; left as it is, how far its streams were read included.
        previous: output of the phase before.
        donate: as the phase's program is compiled; what it donates is a copy.

    Returns:
        (state, output, what was measured).
    """
    device = strip_host_fields(state)
    piece, _ = next(phase.pieces(device, previous))
    if (scan := phase.scanned) is not None:
        compiled = _compile_one(scan, device, piece)
    else:
        if donate and phase.updates_state:
            device = strip_host_fields(copy_state(state))
        compiled = phase.get_compiled(device, piece, donate=donate)
    after, output, packed = compiled.run(device, piece)
    return attach_host_fields(after, state), output, PendingMetrics(phase, [(compiled, packed)])


def _compile_one(scan: ScannedStep, state: TrainState, piece: Any) -> CompiledPhase:
    """Compile the first step alone; it reports as the executor `step` does."""
    measured: list[PyTree] = []

    def first(state: TrainState, piece: Any) -> tuple[TrainState | None, None, jax.Array]:
        after, numbers = scan.run_once(state, scan.first_batch(state, piece))
        measured.append(get_shapes(numbers))
        return after if scan.updates_state else None, None, pack(numbers)[None]

    compiled = compile_ahead(first, state, piece)
    if not measured:  # nothing was traced yet
        jax.eval_shape(first, state, piece)

    def run(state: TrainState, piece: Any) -> tuple[TrainState, PyTree, jax.Array]:
        after, output, packed = compiled(state, piece)
        return after if scan.updates_state else state, output, packed

    return CompiledPhase(
        run, PackedLayout.from_shapes(measured[0]), True, ExecutorChoice("step", "it is one step")
    )


def _make_trial_hooks(hooks: Sequence[Hook], called: set[str]) -> list[Hook]:
    """Give hooks that are always due, call what leaves nothing behind, and note that they were."""
    opened: dict[Gate, Gate] = {}

    def rehearsing(hook: Hook) -> Hook:
        for gate in hook.gates:
            opened.setdefault(gate, _opened(gate))
        function = hook.dry_run or (None if hook.stage == "save" else hook.function)

        def call(state: TrainState, metrics: Any) -> TrainState:
            if function is None:
                return state
            called.add(hook.name)
            return function(state, metrics)

        gates = tuple(opened[gate] for gate in hook.gates)
        return dataclasses.replace(hook, function=call, gates=gates, restore=None)

    return [rehearsing(hook) for hook in hooks]


def _opened(gate: Gate) -> Gate:
    """Ask what a gate asks, which may fail as well, and open it whatever the answer."""

    def ask(state: TrainState, metrics: Any, event: str) -> bool:
        gate.is_open(state, metrics, event)
        return True

    return Gate(ask, gate.after_fire)


def _tell(phases: Sequence[Phase], hooks: Sequence[Hook], called: set[str], seconds: float) -> None:
    names = dict.fromkeys(hook.name for hook in hooks if hook.at != "error")
    missed = [name for name in names if name not in called]
    log.info(
        "check: one step of %s and %d hooks, on this run's data, in %.2f s, compiling included%s",
        ", ".join(phase.name for phase in phases),
        len(called),
        seconds,
        f"; not called, for what they read was not written or they commit: {', '.join(missed)}"
        if missed
        else "",
    )
