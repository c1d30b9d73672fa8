"""The loop: epochs of phases, hooks between them."""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from trainer.checks.arguments import describe_value, require_integer
from trainer.hook import Hooks, flatten_hooks
from trainer.host.exception_notes import annotate_errors
from trainer.host.processes import (
    NO_STOP,
    StopReasons,
    agree_on_stop,
    check_same,
    from_main_process,
)
from trainer.host.signals import attach_progress, catch_signals, end_process
from trainer.host.time_spans import span
from trainer.loop.dry_run import run_dry
from trainer.loop.events import HookRunner
from trainer.loop.run_description import send_description
from trainer.phases.compiled_phase import CompiledPhase
from trainer.phases.metrics import Metrics
from trainer.phases.phase import Phase
from trainer.phases.state_buffers import copy_state
from trainer.state import MAX_STEP, TrainState, check_step_limit, read_step_count, require_state

log = logging.getLogger("entracte")

History = list[dict[str, float]]
"""The metrics of the epochs that one call of `fit` ran; where it found all done, the recorded."""


def fit(
    state: TrainState,
    program: Phase | Sequence[Phase],
    *,
    epochs: int,
    hooks: Hooks = (),
    donate: bool = True,
    ignore_stop: bool = False,
    check: bool = False,
    return_on_interrupt: bool = False,
) -> tuple[TrainState, History]:
    """Train until the state has completed `epochs` epochs, running hooks between phases.

    Args:
        state: to start from; left as it is. A hook may put an earlier run's in its place.
        program: a phase, or several that make up an epoch, in order.
        epochs: the total that `state.epoch` shall reach, whatever was done before.
        hooks: a hook, a chain, or several; see the package `hooks`.
        donate: let phases reuse the state's buffers, so that arrays which a hook keeps in a closure
            may be deleted. False keeps them all, for twice the memory.
        ignore_stop: go on although the state says stop.
        check: first try one step of each phase and one call of each hook on real data, and throw
            the results away: what would fail after hours fails now, and the run is the same bit for
            bit. Single steps are compiled for it, and it takes the memory of a second state. A hook
            that leaves something behind says what to call instead, see `Hook.dry_run`.
        return_on_interrupt: return after SIGINT (Ctrl-C, the stop button of a notebook) and this
            epoch's commit, instead of raising; the state says how far it came.

    Returns:
        The final state, and the metrics of each epoch that this call ran. Where there was nothing
        left to train, those on record: from `hooks.JsonLines`, or the last epoch's alone, from the
        checkpoint.

    Raises:
        TypeError: the state, the program, the total or a hook is none.
        ValueError: something does not fit together, before anything trains.
        SystemExit: 143, after SIGTERM and this epoch's commit.
        KeyboardInterrupt: after SIGINT and this epoch's commit, with what there is in its
            attributes `state` and `history`. A second SIGINT does not wait; its `state` is None
            where the phase under way had used it up.
        OverflowError: `state.step` would pass 2**31 - 1.

    >>> import jax.numpy as jnp
    >>> def halve(state, data):
    ...     return state.replace(params=state.params / 2), None, {"size": state.params}
    >>> start = TrainState.create(params=jnp.float32(1), rng=jax.random.key(0))
    >>> state, history = fit(start, Phase("shrink", halve), epochs=3)
    >>> float(state.params), [epoch["shrink/size"] for epoch in history]
    (0.125, [1.0, 0.5, 0.25])
    """
    require_state("fit", state)
    phases = _validate_program(program, hooked=bool(flatten_hooks(hooks)))
    if (epochs := require_integer("epochs", epochs, 0)) > MAX_STEP:
        raise ValueError(f"epochs must be at most {MAX_STEP:,}, which int32 counts; got {epochs:,}")
    events = HookRunner(hooks, [phase.name for phase in phases])
    history: History = []
    with catch_signals() as signals, _close_on_exit(events, history):
        ending = NO_STOP
        state, metrics = _start_run(state, phases, events, epochs, donate, ignore_stop, check)
        number = int(state.epoch)
        going = number < epochs and not state.stop
        programs = _compile_phases(state, phases, donate=donate) if going else []
        if not going:
            history += events.read_history(state, metrics)
        steps, taken = read_step_count(state), sum(phase.steps_per_epoch or 0 for phase in phases)
        while number < epochs and not state.stop:
            number += 1
            if steps > MAX_STEP // 2:  # a hook may have put an earlier state in its place
                steps = read_step_count(state)
            check_step_limit(steps, taken)
            with span("epoch", number=number):
                state, metrics, taken = _run_epoch(
                    state, programs, events, number, epochs, donate, steps
                )
            steps += taken
            history.append(metrics.as_dict())
            ending = agree_on_stop(
                StopReasons(state.stop, events.interrupt is not None, signals.number)
            )
            if ending.signal or (ending.interrupt and not ending.stop):
                log.warning("interrupted at epoch %d: %s", number, events.interrupt or "signal")
                events.run("end", state, metrics, stages=["save"])
                break
        else:
            state, _ = events.run("end", state, metrics)
        events.flush()  # what failed in the background is raised here, while error hooks can run
    stopped = ending.signal or signals.number
    if not (stopped == signal.SIGINT and return_on_interrupt):
        end_process(stopped, state, history)
    return state, history


def _validate_program(program: Phase | Sequence[Phase], *, hooked: bool) -> tuple[Phase, ...]:
    """Check a program; where hooks run, they may be what changes the state, as one that follows."""
    phases = (program,) if isinstance(program, Phase) else program
    several = isinstance(phases, Sequence) and not hasattr(phases, "_fields")
    if not several or not phases or not all(isinstance(phase, Phase) for phase in phases):
        raise TypeError(
            f"fit trains a Phase, or a sequence of them; got {_got(program)}: make one with "
            "trainer.training(task.step, source)"
        )
    phases = tuple(phases)
    names = [phase.name for phase in phases]
    # A split measures the same at each epoch; a rollout plays other episodes, and may stand alone.
    if not hooked and all(phase.repeated_step and not phase.updates_state for phase in phases):
        raise ValueError(
            f"fit needs a phase that trains; of {names} each only measures: make one with "
            "trainer.training(task.step, source), or measure with trainer.evaluate(state, phase)"
        )
    reserved = {"start", "epoch", "end", "error", "time"} & set(names)
    if reserved or len(set(names)) < len(names):
        raise ValueError(
            f"phases need names of their own, none of start, epoch, end, error, time; got {names}"
        )
    return phases


def _got(program: Any) -> str:
    if isinstance(program, list | tuple) and not hasattr(program, "_fields"):
        return f"[{', '.join(map(describe_value, program))}]"
    return describe_value(program)


@contextlib.contextmanager
def _close_on_exit(events: HookRunner, history: History) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            attach_progress(error, events.readable, history)
        try:
            events.run_error_hooks(error)
        finally:
            events.close(error)
        raise
    events.close()


def _start_run(
    state: TrainState,
    phases: Sequence[Phase],
    events: HookRunner,
    epochs: int,
    donate: bool,
    ignore_stop: bool,
    check: bool,
) -> tuple[TrainState, Metrics]:
    """Check everything, restore, rehearse if asked to, start the hooks."""
    check_same(f"{epochs} epochs of {[p.name for p in phases]}, {[h.name for h in events.hooks]}")
    if events.order["error"]:
        events.first = state
    given, state = state, copy_state(state)
    for phase in phases:
        state = phase.add_position(state)
    measured: dict[str, list[str]] = {}
    output = None
    for phase in phases:
        output, reported = phase.infer_shapes(state, output, donate=donate)
        phase.verify(state)
        measured[phase.name] = list(phase.expand_metric_names(reported))
    events.check_requirements(state, measured)

    send_description(given, phases, events.hooks)
    state, metrics = events.restore(events.init_hook_states(state))
    state = events.init_hook_states(state)
    if ignore_stop:
        state = state.replace(stop=False)
    if check and int(state.epoch) < epochs and not state.stop:
        run_dry(state, phases, events, epochs=epochs, donate=donate)
    state, _ = events.run("start", state, Metrics(epochs=epochs))
    if int(state.epoch) >= epochs:
        log.info("nothing to train: %d of %d epochs are completed", int(state.epoch), epochs)
    elif state.stop:
        log.info(
            "nothing to train: stopped at epoch %d (ignore_stop=True goes on)", int(state.epoch)
        )
    return state, metrics


def _compile_phases(
    state: TrainState, phases: Sequence[Phase], *, donate: bool
) -> list[tuple[Phase, CompiledPhase]]:
    """Compile ahead of the first epoch, and say how long it took, to who wants to know."""
    programs, output = [], None
    for phase in phases:
        started = time.perf_counter()
        program = phase.get_compiled(
            state, phase.feed.example if phase.feed else output, donate=donate
        )
        seconds = time.perf_counter() - started
        log.debug("%s: compiled in %.2f s; executor %s, %s", phase.name, seconds, *program.choice)
        output, _ = phase.infer_shapes(state, output, donate=donate)
        programs.append((phase, program))
    return programs


def _run_epoch(
    state: TrainState,
    programs: Sequence[tuple[Phase, CompiledPhase]],
    events: HookRunner,
    number: int,
    epochs: int,
    donate: bool,
    begun_at: int,
) -> tuple[TrainState, Metrics, int]:
    """Run the phases once, and the hooks after each and after all; count the steps."""
    started = time.perf_counter()
    values: dict[str, float] = {}
    traces: dict[str, np.ndarray] = {}
    waiting, output, taken = [], None, 0
    for phase, program in programs:
        with annotate_errors(f"in phase {phase.name!r} of epoch {number}"):
            state, output, measured = phase.execute(state, output, program, donate=donate)
        waiting.append(measured)
        if phase is programs[-1][0]:
            epoch = _next(state.epoch)  # before waiting: the device counts while it computes
        if events.order[phase.name] or phase is programs[-1][0]:
            for measured in waiting:  # of phases before this one, too
                with annotate_errors(f"in phase {measured.phase.name!r} of epoch {number}"):
                    numbers, steps, count = measured.read()
                values |= numbers
                traces |= steps
                taken += count
            waiting = []
            check_step_limit(begun_at, taken)
        if events.order[phase.name]:
            metrics = Metrics(values, steps=traces, output=output, epochs=epochs)
            state, _ = events.run(phase.name, state, metrics)
    seconds = time.perf_counter() - started
    times = {"time/epoch_seconds": seconds, "time/steps_per_second": taken / seconds}
    values |= from_main_process(times | events.pop_hook_times())
    metrics = Metrics(values, steps=traces, output=output, epochs=epochs)
    return (*events.run("epoch", state.replace(epoch=epoch), metrics), taken)


@jax.jit
def _next(epoch: jax.Array) -> jax.Array:
    """Count on the device: 7 us, where a transfer from the host takes 100."""
    return epoch + 1
