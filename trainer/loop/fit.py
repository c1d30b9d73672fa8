"""The training loop: epochs of phases, and hooks between them."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Sequence
from typing import Any

from trainer.checks.arguments import describe_value, require_integer
from trainer.hook import Hooks, flatten_hooks
from trainer.host.notebooks import in_notebook
from trainer.host.processes import NO_STOP, check_same
from trainer.host.signals import catch_signals, end_process
from trainer.host.time_spans import span
from trainer.loop.compiling import compile_phases
from trainer.loop.dry_run import run_dry
from trainer.loop.epochs import EpochRunner, Plan
from trainer.loop.error_hooks import close_on_exit
from trainer.loop.events import HookRunner
from trainer.loop.history import History
from trainer.loop.hook_requirements import check_no_hook_inside, check_requirements
from trainer.loop.hook_states import init_hook_states, read_history, restore_state
from trainer.loop.run_description import check_same_settings, send_description
from trainer.phases.buffers.state_buffers import copy_shared_leaves, make_arrays
from trainer.phases.compiled_phase import CompiledPhase
from trainer.phases.metrics import Metrics
from trainer.phases.phase import Phase
from trainer.state import MAX_STEP, TrainState, check_step_limit, read_step_count, require_state

log = logging.getLogger("entracte")


def fit(
    state: TrainState,
    program: Phase | Sequence[Phase],
    *,
    epochs: int,
    hooks: Hooks = (),
    donate: bool = True,
    ignore_stop: bool = False,
    dry_run: bool = False,
    overlap: bool = False,
    return_on_interrupt: bool | None = None,
) -> tuple[TrainState, History]:
    """Train until the state has completed `epochs` epochs, running hooks between phases.

    Args:
        state: to start from; it is not changed. A hook may restore an earlier run's instead.
        program: a phase, or several that make up an epoch, in order.
        epochs: the total that `state.epoch` shall reach, including epochs of earlier runs.
        hooks: a hook, a chain, or several; see the package `hooks`.
        donate: let phases reuse the state's buffers, so that arrays which a hook keeps in a closure
            may be deleted. False keeps them all, for twice the memory.
        ignore_stop: train even if `state.stop` is True.
        dry_run: first run one step of each phase and call each hook once, on real data, and discard
            the results. What would fail after hours fails now, and the run that follows is the same
            bit for bit. It compiles single steps, and takes the memory of a second state. A hook
            that leaves something behind declares what to call instead, see `Hook.dry_run`.
        overlap: let the device compute the next epoch while the hooks of this one run. No bit and
            no decision differs. It implies `donate=False`, and so takes twice the memory. An epoch
            after which a hook changes `state.params`, or stops the run, has had the next one
            computed for nothing.
        return_on_interrupt: after SIGINT (Ctrl-C, the stop button of a notebook), save this epoch
            and return instead of raising. None does so in a notebook, where `state` and `history`
            are then those reached, and nowhere else.

    Returns:
        The final state, and the metrics of each epoch that this call ran. Arrays of 64 KB or more
        that no phase changes are those of the given state. If there was nothing left to train, the
        recorded metrics: from `hooks.JsonLines`, or only those of the last epoch, from the
        checkpoint.

    Raises:
        TypeError: the state, the program, the total or a hook is of another type.
        ValueError: something does not fit together; raised before anything trains.
        SystemExit: 143, after SIGTERM, when this epoch is saved.
        KeyboardInterrupt: after SIGINT, when this epoch is saved, unless it returns; its attributes
            `state` and `history` hold the progress. A second SIGINT does not wait, in a notebook
            neither; `state` is then None if the current phase has used it up.
        OverflowError: `state.step` would pass 2**31 - 1.

    >>> import jax, jax.numpy as jnp
    >>> def halve(state, data):
    ...     return state.replace(params=state.params / 2), None, {"size": state.params}
    >>> start = TrainState.create(params=jnp.float32(1), rng=jax.random.key(0))
    >>> state, history = fit(start, Phase("shrink", halve), epochs=3)
    >>> float(state.params), [epoch["shrink/size"] for epoch in history]
    (0.125, [1.0, 0.5, 0.25])
    """
    require_state("fit", state)
    plan = _validate(program, epochs, hooks, donate=donate, overlap=overlap)
    first = state if plan.events.order["error"] else None
    history = History()
    with catch_signals() as signals, close_on_exit(plan.events, history, first):
        plan.events.received = signals
        state, metrics = _start(plan, state, dry_run=dry_run, ignore_stop=ignore_stop)
        compiled: list[CompiledPhase] = []
        if int(state.epoch) < plan.epochs and not state.stop:
            compiled = compile_phases(plan.phases, plan.hooks, state, donate=plan.donate)
        else:
            for recorded in read_history(plan.hooks, state, metrics):
                history.add(*recorded)
        number, steps, reasons = int(state.epoch), read_step_count(state), NO_STOP
        taken = sum(phase.steps_per_epoch or 0 for phase in plan.phases)
        interrupted = False
        with contextlib.closing(EpochRunner(plan, compiled, state, metrics)) as now:
            del state  # or it would stay in memory
            while number < plan.epochs and not now.state.stop and not interrupted:
                number, steps = number + 1, _check_steps(now.state, steps, taken)
                with span("epoch", number=number):
                    taken = now.run_epoch(number, steps)
                steps += taken
                history.add(number, now.metrics.as_dict())
                reasons = plan.events.decide(now.state)
                interrupted = bool(reasons.signal or (reasons.interrupt and not reasons.stop))
        if interrupted:
            log.warning("interrupted at epoch %d: %s", number, plan.events.interrupt or "signal")
            plan.events.run("end", now.state, now.metrics, stages=["save"])
            state = now.state
        else:
            state, _ = plan.events.run("end", now.state, now.metrics)
        plan.events.flush()  # an error in the background is raised here, while error hooks can run
    stopped = reasons.signal or signals.number
    returns = in_notebook() if return_on_interrupt is None else return_on_interrupt
    if not (stopped == signal.SIGINT and returns):
        end_process(stopped, state, history)
    return state, history


def _validate(program: Any, epochs: int, hooks: Hooks, *, donate: bool, overlap: bool) -> Plan:
    """Check the arguments of `fit`, alone and together."""
    flat = flatten_hooks(hooks)
    phases = _validate_program(program, hooked=bool(flat))
    check_no_hook_inside(flat, phases)
    if (epochs := require_integer("epochs", epochs, 0)) > MAX_STEP:
        raise ValueError(f"epochs must be at most {MAX_STEP:,}, which int32 counts; got {epochs:,}")
    donate = donate and not overlap
    events = HookRunner(hooks, [phase.name for phase in phases], donate=donate)
    return Plan(phases, events, epochs, donate, overlap)


def _validate_program(program: Any, *, hooked: bool) -> tuple[Phase, ...]:
    """Check a program. Without hooks, one of its phases must change the state."""
    phases = (program,) if isinstance(program, Phase) else program
    several = isinstance(phases, Sequence) and not hasattr(phases, "_fields")
    if not several or not phases or not all(isinstance(phase, Phase) for phase in phases):
        raise TypeError(
            f"fit trains a Phase, or a sequence of them; got {_describe_program(program)}: make "
            "one with trainer.training(task.step, source)"
        )
    phases = tuple(phases)
    names = [phase.name for phase in phases]
    # A split measures the same in each epoch; a rollout plays new episodes, and may be alone.
    if not hooked and all(phase.repeated_step and not phase.updates_state for phase in phases):
        raise ValueError(
            f"fit needs a phase that trains; of {names} each only measures: make one with "
            "trainer.training(task.step, source), or measure with trainer.evaluate(state, phase)"
        )
    names += [each.name for phase in phases for each in phase.passes]
    reserved = {"start", "epoch", "end", "error", "time"} & set(names)
    if reserved or len(set(names)) < len(names):
        raise ValueError(
            f"phases need names of their own, none of start, epoch, end, error, time; got {names}"
        )
    return phases


def _describe_program(program: Any) -> str:
    if isinstance(program, list | tuple) and not hasattr(program, "_fields"):
        return f"[{', '.join(map(describe_value, program))}]"
    return describe_value(program)


def _check_steps(state: TrainState, steps: int, more: int) -> int:
    """Check that int32 can count an epoch more, and return the steps so far."""
    if steps > MAX_STEP // 2:  # a hook may have restored an earlier state
        steps = read_step_count(state)
    check_step_limit(steps, more)
    return steps


def _start(
    plan: Plan, state: TrainState, *, dry_run: bool, ignore_stop: bool
) -> tuple[TrainState, Metrics]:
    """Validate, restore, dry-run if asked to, and run the hooks of `start`."""
    names = [phase.name for phase in plan.phases]
    check_same(f"{plan.epochs} epochs of {names}, {[hook.name for hook in plan.hooks]}")
    check_same_settings(state, plan.phases, plan.hooks)
    given, state = state, make_arrays(state)
    for phase in plan.phases:
        state = phase.add_position(state)
    measured, passed = _check_phases(plan, state)
    check_requirements(plan.events.order, measured, state)
    state = copy_shared_leaves(state, given, passed)

    send_description(given, plan.phases, plan.hooks)
    state, metrics = restore_state(plan.hooks, init_hook_states(plan.hooks, state))
    state = init_hook_states(plan.hooks, state)
    if ignore_stop:
        state = state.replace(stop=False)

    completed = int(state.epoch)
    if dry_run and completed < plan.epochs and not state.stop:
        run_dry(state, plan.phases, plan.hooks, epochs=plan.epochs, donate=plan.donate)
    state, _ = plan.events.run("start", state, Metrics(epochs=plan.epochs))
    if completed >= plan.epochs:
        log.info("nothing to train: %d of %d epochs are completed", completed, plan.epochs)
    elif state.stop:
        message = "nothing to train: stopped at epoch %d (ignore_stop=True trains on)"
        log.info(message, int(state.epoch))
    return state, metrics


def _check_phases(plan: Plan, state: TrainState) -> tuple[dict[str, list[str]], Sequence[bool]]:
    """Check that the phases fit the state and one another.

    Returns:
        The names of their metrics; of each leaf of the state whether all of them pass it through.
    """
    measured, output = {}, None
    passed: list[tuple[bool, ...]] = []
    for phase in plan.phases:
        output, reported, passes = phase.infer_shapes(state, output, donate=plan.donate)
        phase.verify(state)
        measured[phase.name] = list(phase.expand_metric_names(reported))
        passed.append(passes)
    return measured, [*map(all, zip(*passed, strict=True))]
