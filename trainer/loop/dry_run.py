"""The dry run: one step of each phase and one call of each hook, before a long run begins."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from typing import Any

import jax

from trainer.hook import Gate, Hook
from trainer.loop.events import HookRunner
from trainer.loop.metric_reader import MetricReader
from trainer.phases.buffers.state_buffers import copy_state
from trainer.phases.compilation import lower_ahead
from trainer.phases.compiled_phase import CompiledPhase, compute_signature
from trainer.phases.executors import ExecutorChoice, ScannedStep
from trainer.phases.host_metrics.pending_metrics import PendingMetrics
from trainer.phases.metrics import Metrics
from trainer.phases.packed import PackedLayout, get_shapes, pack
from trainer.phases.phase import Phase
from trainer.state import PyTree, TrainState, attach_host_fields, strip_host_fields

log = logging.getLogger("entracte")


def run_dry(
    state: TrainState, phases: Sequence[Phase], hooks: Sequence[Hook], *, epochs: int, donate: bool
) -> None:
    """Run one step of each phase and each hook once, on real data, and discard the results.

    A phase that was written by hand runs on its first piece of data. All hooks of `start`, the
    phases, `epoch` and `end` are called, whether or not they are due. What hooks return is checked
    as in the run, and passed to the next. `Interrupt` and `stop` do not end the dry run. If a hook
    declares `dry_run`, that is called instead; a save that does not is left out.
    """
    began, where = time.perf_counter(), "at the start"
    called: set[str] = set()
    names = [phase.name for phase in phases]
    trial = HookRunner(_make_trial_hooks(hooks, called), names, donate=donate)
    reader, output = MetricReader(epochs=epochs, where="the dry run"), None
    try:
        state, _ = trial.run("start", state, Metrics(epochs=epochs))
        for phase in phases:
            where = f"phase {phase.name!r}"
            state, output, measured = run_first_step(phase, state, output, donate=donate)
            reader.add(measured)
            metrics = reader.read(output)
            where = f"hooks at {phase.name!r}"
            state, _ = trial.run(phase.name, state, metrics)
        where = "hooks at the end of the epoch"
        metrics = reader.read_all(output, trial.pop_hook_times())
        state, metrics = trial.run("epoch", state.replace(epoch=state.epoch + 1), metrics)
        trial.flush()  # background work ends, and fails, within the dry run
        where = "hooks at the end of the run"
        trial.run("end", state, metrics)
    except Exception as error:
        error.add_note(f"in the dry run ({where}); nothing was trained or recorded")
        raise
    seconds = time.perf_counter() - began
    missed = {hook.name: None for hook in hooks if hook.at != "error" and hook.name not in called}
    reason = "not called, since their metrics are missing or they save"
    log.info(
        "dry run: one step of %s and %d hooks, on this run's data, in %.2f s, compiling included%s",
        ", ".join(phase.name for phase in phases),
        len(called),
        seconds,
        f"; {reason}: {', '.join(missed)}" if missed else "",
    )


def run_first_step(
    phase: Phase, state: TrainState, previous: PyTree = None, *, donate: bool = False
) -> tuple[TrainState, PyTree, PendingMetrics]:
    """Run the first step of a phase; of one written by hand, or of a population, its first piece.

    The state is not changed, nor are the positions of its streams: what is donated is a copy.
    Returns (state, output, metrics).
    """
    device = strip_host_fields(state)
    piece, _ = next(phase.pieces(device, previous))
    if (scan := phase.scanned) is not None:
        compiled = _compile_one_step(scan, device, piece)
    else:
        if donate and phase.updates_state:
            device = strip_host_fields(copy_state(state))
        compiled = phase.get_compiled(device, piece, donate=donate)
    after, output, packed = compiled.run(device, piece)
    return attach_host_fields(after, state), output, PendingMetrics(phase, [(compiled, packed)])


def _compile_one_step(scan: ScannedStep, state: TrainState, piece: Any) -> CompiledPhase:
    """Compile the first step alone, with the outputs of the executor `step`."""
    measured: list[PyTree] = []

    def first(state: TrainState, piece: Any) -> tuple[TrainState | None, None, jax.Array]:
        after, numbers = scan.run_once(state, scan.first_batch(state, piece))
        measured.append(get_shapes(numbers))
        return after if scan.updates_state else None, None, pack(numbers)[None]

    compiled = lower_ahead(first, state, piece)()
    if not measured:  # nothing was traced yet
        jax.eval_shape(first, state, piece)

    def run(state: TrainState, piece: Any) -> tuple[TrainState, PyTree, jax.Array]:
        after, output, packed = compiled(state, piece)
        return after if scan.updates_state else state, output, packed

    choice, layout = ExecutorChoice("step", "it is one step"), PackedLayout.from_shapes(measured[0])
    return CompiledPhase(run, layout, True, choice, compute_signature(piece))


def _make_trial_hooks(hooks: Sequence[Hook], called: set[str]) -> list[Hook]:
    """Make hooks that are always due, leave nothing behind, and add their names to `called`."""
    opened = {gate: _open_gate(gate) for hook in hooks for gate in hook.gates}

    def make_trial_hook(hook: Hook) -> Hook:
        function = hook.dry_run or (None if hook.stage == "save" else hook.function)

        def call(state: TrainState, metrics: Any) -> TrainState:
            if function is None:
                return state
            called.add(hook.name)
            return function(state, metrics)

        gates = tuple(opened[gate] for gate in hook.gates)
        return dataclasses.replace(hook, function=call, gates=gates, restore=None)

    return [make_trial_hook(hook) for hook in hooks]


def _open_gate(gate: Gate) -> Gate:
    """Make a gate that is always open, but calls the original, which may fail."""

    def ask(state: TrainState, metrics: Any, event: str) -> bool:
        gate.is_open(state, metrics, event)
        return True

    return Gate(ask, gate.after_fire)
