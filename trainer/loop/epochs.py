"""Epochs one after another; with overlap, one is dispatched before the hooks of the one before."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding

from trainer.hook import Hook
from trainer.host.exception_notes import annotate_errors
from trainer.loop.events import HookRunner
from trainer.loop.metric_reader import MetricReader
from trainer.phases.compiled_phase import CompiledPhase
from trainer.phases.dispatch import Dispatch, Dispatched
from trainer.phases.metrics import Metrics
from trainer.phases.phase import Phase
from trainer.placement.constraints import to_global
from trainer.state import PyTree, TrainState, attach_host_fields

log = logging.getLogger("entracte")


class Plan(NamedTuple):
    """What a run consists of, besides its state."""

    phases: tuple[Phase, ...]
    events: HookRunner
    epochs: int
    donate: bool
    overlap: bool

    @property
    def hooks(self) -> tuple[Hook, ...]:
        """All hooks of the run."""
        return self.events.hooks


class EpochRunner:
    """Runs the epochs of a run, and holds its state.

    With overlap, epoch n + 1 is dispatched from the state that the phases of epoch n will leave,
    before the metrics of n are read and its hooks run. It counts if these leave every array of the
    device part as it is; else it is discarded and dispatched again, so no bit depends on it.

    Args:
        plan: the phases and hooks.
        compiled: the phases, compiled.
        state: to start from.
        metrics: of the epoch before.
    """

    def __init__(
        self, plan: Plan, compiled: Sequence[CompiledPhase], state: TrainState, metrics: Metrics
    ) -> None:
        self.state, self.metrics = state, metrics
        self._plan, self._compiled = plan, compiled
        self._ahead: _Epoch | None = None
        self._forecast, self._changed, self._landed = Forecast(), False, 0.0
        if plan.overlap and compiled:
            _warn_of_waits(plan, compiled)

    def run_epoch(self, number: int, steps: int) -> int:
        """Run an epoch and its hooks; return the optimizer steps that it took.

        `number` counts from 1; `steps` were taken before it.
        """
        plan, epoch = self._plan, self._take(number, steps)
        after, output = epoch.finish()
        may_follow = plan.overlap and number < plan.epochs and not plan.events.is_ending(after)
        expected = self._forecast.expects_no_change()
        ahead, prepared = may_follow and expected, False
        if ahead:
            self.state = after
        if ahead or (expected and not plan.overlap):
            prepared = plan.events.prepare(after, number, may_wait=plan.overlap)
        if ahead:
            self._ahead = _Epoch(plan, self._compiled, after, number + 1)
            self._ahead.begin()
        metrics = epoch.reader.read_all(output, plan.events.pop_hook_times())
        self._landed = time.perf_counter()
        self.state, self.metrics = plan.events.run("epoch", after, metrics)
        if plan.overlap or plan.events.prepares:
            self._changed = plan.events.changed_arrays(after, self.state)
            self._forecast.learn(changed=self._changed, tried=ahead or prepared)
        return epoch.reader.taken

    def close(self) -> None:
        """Discard what was dispatched early, with the state and the readers that it holds."""
        epoch, self._ahead = self._ahead, None
        if epoch is not None:
            epoch.discard()

    def _take(self, number: int, steps: int) -> _Epoch:
        """Return the epoch that was dispatched early, if it still counts, or a new one."""
        if self._changed:
            self.close()
        epoch, self._ahead = self._ahead, None
        if epoch is None:
            epoch = _Epoch(self._plan, self._compiled, self.state, number)
        else:
            epoch.adopt(self.state, self._landed)
        epoch.reader.steps = steps
        if self._plan.overlap and not self._plan.events.order["error"]:
            self._plan.events.latest = None
        return epoch


class _Epoch:
    """The phases of an epoch, and their hooks, in dispatch.

    Args:
        state: that it begins with; its device part may still be in computation.
    """

    def __init__(
        self, plan: Plan, compiled: Sequence[CompiledPhase], state: TrainState, number: int
    ) -> None:
        self.reader = MetricReader(epochs=plan.epochs, where=f"epoch {number}")
        self._dispatch = Dispatch(self._run_phases(plan, compiled, state, number))
        self._host: TrainState | None = None

    def begin(self) -> None:
        """Dispatch what may be dispatched before the hooks of the epoch before."""
        self._dispatch.begin()

    def adopt(self, state: TrainState, began: float) -> None:
        """Continue with the host part that hooks left; the epoch's time counts from `began`."""
        self._host, self.reader.began = state, began

    def finish(self) -> tuple[TrainState, PyTree]:
        """Dispatch what is left; return the state and the output of the last phase."""
        state, output = self._dispatch.finish()
        return self._with_host(state), output

    def discard(self) -> None:
        """Drop what was dispatched."""
        self._dispatch.discard()

    def _with_host(self, state: TrainState) -> TrainState:
        host, self._host = self._host, None
        return state if host is None else attach_host_fields(state, host)

    def _run_phases(
        self, plan: Plan, compiled: Sequence[CompiledPhase], state: TrainState, number: int
    ) -> Dispatched[tuple[TrainState, PyTree]]:
        output = None
        for phase, program in zip(plan.phases, compiled, strict=True):
            with annotate_errors(f"in phase {phase.name!r} of epoch {number}"):
                state, output, measured = yield from phase.dispatch(
                    state, output, program, donate=plan.donate
                )
            self.reader.add(measured)
            if phase is plan.phases[-1]:
                epoch = _count(state.epoch, number)  # before the wait, while the device computes
            if plan.events.order[phase.name]:
                yield  # its hooks read what the phases measured
                seen = self._with_host(state), self.reader.read(output)
                state, _ = plan.events.run(phase.name, *seen)
        return state.replace(epoch=epoch), output


class Forecast:
    """Expects whether hooks leave the arrays of the state alone, by what they did before.

    After it was wrong it waits until hooks left them alone in several epochs, twice as many each
    time: hooks that change the state in every epoch cost one epoch's computation in all.

    >>> forecast = Forecast()
    >>> forecast.learn(changed=True, tried=True)
    >>> forecast.expects_no_change()
    False
    >>> forecast.learn(changed=False, tried=False)
    >>> forecast.expects_no_change()
    True
    """

    def __init__(self) -> None:
        self._unchanged = 0
        self._needed = 0

    def expects_no_change(self) -> bool:
        """Return whether it pays to dispatch early what follows from them."""
        return self._unchanged >= self._needed

    def learn(self, *, changed: bool, tried: bool) -> None:
        """Take in whether hooks changed an array, and if anything was dispatched early."""
        self._unchanged = 0 if changed else self._unchanged + 1
        if tried:
            self._needed = (
                min(2 * self._needed or 1, _MOST_EPOCHS) if changed else self._needed // 2
            )


_MOST_EPOCHS = 16
"""Epochs without a change after which it tries again, at most."""


def _warn_of_waits(plan: Plan, compiled: Sequence[CompiledPhase]) -> None:
    """Log which phases wait for the hooks of the epoch before, though overlap was asked for."""
    for place, (phase, program) in enumerate(zip(plan.phases, compiled, strict=True)):
        waiting, reason = phase, (phase.feed and phase.feed.in_turn) or program.in_turn
        if reason is None and plan.events.order[phase.name] and place + 1 < len(plan.phases):
            names = ", ".join(hook.name for hook in plan.events.order[phase.name])
            waiting, reason = plan.phases[place + 1], f"hooks run before it: {names}"
        if reason is not None:
            message = "overlap=True: phase %r waits for the hooks of the epoch before it, since %s"
            log.warning(message, waiting.name, reason)
            return


def _count(epoch: jax.Array, number: int) -> jax.Array:
    """Return the number of an epoch where the one before lies.

    On several devices 17 us; to count there takes 90, and waits for what they compute.
    """
    if isinstance(sharding := epoch.sharding, NamedSharding):
        return to_global(np.asarray(number, epoch.dtype), sharding)
    return _increment(epoch)


@jax.jit
def _increment(epoch: jax.Array) -> jax.Array:
    """Count on the device: 7 us, where a transfer from the host takes 100."""
    return epoch + 1
