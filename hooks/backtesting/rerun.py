"""Replaying: hooks run again over a run on record, to see what they would have done."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from hooks.backtesting.past_runs import PastEpoch, PastRun, load_past_run
from hooks.backtesting.past_states import PastStates
from trainer import Hook, Interrupt, Metrics, TrainState
from trainer.checkpoints.directory_lock import DirectoryInUse, find_holder
from trainer.checks.suggestions import suggest_and_list
from trainer.hook import Gate, Hooks, HookState, flatten_hooks
from trainer.loop.events import HookRunner
from trainer.runs import Store
from trainer.runs.directory_claim import claim_directory
from trainer.state import PyTree


class BacktestEpoch(NamedTuple):
    """What hooks did at an epoch."""

    epoch: int
    step: int
    scores: dict[str, float]
    """What they wrote."""
    hook_state: dict[str, PyTree]
    """What each remembers after it."""
    hyperparams: dict[str, float]
    """The optimizer's numbers after it, for the next one; empty where no state was given."""


class Backtest(NamedTuple):
    """What hooks would have done."""

    run: str
    """Its name."""
    epochs: list[BacktestEpoch]
    """All that are on record, or those until hooks ended the run."""
    stop_epoch: int | None
    """The epoch at which they did; None where they let it go on."""
    stopped_by: str
    """The hook that did, or empty."""
    stop_reason: str
    """`stop`, the reason of an interrupt, or empty."""


def backtest(
    hooks: Hooks,
    run: str | os.PathLike[str],
    *,
    store: str | os.PathLike[str] | Store | None = None,
    state: TrainState | None = None,
) -> Backtest:
    """Run hooks again over a run on record, without training: what would they have done?

    At each epoch they see the metrics that were recorded and their own memory, in the order of
    execution, and the replay ends where they end the run. Phases give hooks what they measured
    themselves. Observers do what they always do, so that TensorBoard can be filled after the fact:
    give them writers of their own, for those of the run would write over what it left. Commits do
    nothing. What a hook reads off the world, a clock or a file, is of today.

    Parameters and the like are known at epochs whose commit is still there, if a state is given,
    and a hook that looks at them elsewhere is an error that says so. With a state, what hooks set
    for training (the optimizer's numbers, what is frozen, the weights of lessons) is kept from
    epoch to epoch.

    Args:
        hooks: anything that `fit` takes.
        run: directory of the run, or its name in the store.
        store: where it is on record, as of `trainer.runs.Run`; or one that is open.
        state: the one that the run began with, such as `task.init(key, example)`.

    Raises:
        FileNotFoundError: there is no store.
        InUse: an observer would record in the run itself.
        KeyError: the store has no such run.
        NotOnRecord: a hook looks at what is not on record.
        ValueError: nothing is on record of the run, or not what a hook reads.

    >>> import tempfile
    >>> from hooks.control.stopping import stop_early
    >>> with tempfile.TemporaryDirectory() as folder, Store(folder) as store:
    ...     store.register("digits", directory="/runs/digits", host="here", pid=1, time=0.0)
    ...     for epoch, loss in enumerate([0.5, 0.4, 0.45, 0.41, 0.3], 1):
    ...         store.write_records("digits", epoch, 28 * epoch, {"val/loss": loss})
    ...     found = backtest(stop_early("val/loss", patience=2), "digits", store=store)
    >>> found.stop_epoch, found.stopped_by, found.epochs[-1].hook_state["stop_early/val/loss"]
    (4, 'stop_early/val/loss', EarlyStopping(best=0.4, since=2))
    """
    return run_backtest(hooks, load_past_run(run, store=store), state)


def run_backtest(hooks: Hooks, past: PastRun, state: TrainState | None) -> Backtest:
    """Replay hooks over a run that was read, as `backtest` does."""
    trained = [epoch for epoch in past.epochs if epoch.epoch > 0]
    if not trained:
        raise ValueError(
            f"no epoch of run {past.row.name!r} is on record: give its log_metrics a writer "
            "hooks.Database(run), or replay another"
        )
    states = PastStates(past, state)
    watch = _HookObserver(states)
    parts = [watch.watched(part) for part in flatten_hooks(hooks)]
    phases = dict.fromkeys(p.at for p in parts if p.at not in ("start", "epoch", "end", "error"))
    events = HookRunner(parts, list(phases))
    done: list[BacktestEpoch] = []
    with _lock_run(past.row.directory, parts), _closing(events):
        _check(events, past, phases, states.first)
        now = events.init_hook_states(states.first)
        before = next((epoch for epoch in past.epochs if epoch.epoch == 0), PastEpoch(0, 0, {}))
        now, metrics = events.run("start", now, _measured(past, before))
        for epoch in trained:
            if now.stop or events.interrupt is not None:
                break
            watch.scores = {}
            for phase in phases:
                now = states.after_phase(phase, epoch, now)
                now, _ = events.run(phase, now, _measured(past, epoch, phase, states.output))
            now, metrics = events.run(
                "epoch", states.after_epoch(epoch, now), _measured(past, epoch)
            )
            numbers = states.hyperparams(now)
            done.append(BacktestEpoch(*epoch[:2], watch.scores, now.hook_state, numbers))
        if now.stop or events.interrupt is None:
            events.run("end", now, metrics)
        events.flush()
    interrupted = not now.stop and events.interrupt is not None
    return Backtest(
        run=past.row.name,
        epochs=done,
        stop_epoch=int(now.epoch) if now.stop or interrupted else None,
        stopped_by=watch.interrupted_by if interrupted else watch.stopped_by,
        stop_reason="stop" if now.stop else events.interrupt or "",
    )


class _HookObserver:
    """Sees what each hook does, and has the states know which one is under way."""

    def __init__(self, states: PastStates) -> None:
        self._states = states
        self._gates: dict[Gate, Gate] = {}
        self.scores: dict[str, float] = {}
        self.stopped_by = self.interrupted_by = ""

    def watched(self, hook: Hook) -> Hook:
        """Give a hook that is watched; of a commit one that does nothing."""
        if hook.stage == "save":
            return dataclasses.replace(hook, function=_nothing, gates=(), expects=(), reads=())
        name, writes = hook.name, hook.writes

        def run(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
            try:
                with self._states.track_hook(name):
                    after = hook.function(state, metrics)
            except Interrupt:
                self.interrupted_by = self.interrupted_by or name
                raise
            if isinstance(after, TrainState):
                if after.stop and not state.stop:
                    self.stopped_by = name
                if after.scores is not state.scores:
                    self.scores |= after.scores
            return after

        def names(state: TrainState) -> tuple[str, ...]:
            with self._states.track_hook(name):
                return writes(state) if callable(writes) else writes

        return dataclasses.replace(
            hook,
            function=run,
            writes=names,
            hook_states=tuple(self._memory(name, memory) for memory in hook.hook_states),
            gates=tuple(self._gate(name, gate) for gate in hook.gates),
            restore=None,
        )

    def _memory(self, hook: str, memory: HookState) -> HookState:
        def init(state: TrainState) -> PyTree:
            with self._states.track_hook(hook):
                return memory.init(state)

        return HookState(memory.name, init)

    def _gate(self, hook: str, gate: Gate) -> Gate:
        """Watch a gate; the hooks that share it share this one."""

        def ask(state: TrainState, metrics: Mapping[str, float], event: str) -> bool:
            with self._states.track_hook(hook):
                return gate.is_open(state, metrics, event)

        return self._gates.setdefault(gate, Gate(ask, gate.after_fire))


def _nothing(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
    return state


@contextlib.contextmanager
def _lock_run(directory: str, parts: Sequence[Hook]) -> Iterator[None]:
    """Keep observers from recording in the run itself, whose records would be superseded.

    Where another process trains there, the run's own lock does.
    """
    observing = any(part.stage == "observe" for part in parts)
    if not observing or not os.access(directory, os.W_OK) or find_holder(directory, by_others=True):
        yield
        return
    try:
        with claim_directory(Path(directory)):
            yield
    except DirectoryInUse as error:
        error.add_note("the run is being replayed: give its observers writers of their own")
        raise


@contextlib.contextmanager
def _closing(events: HookRunner) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        events.close(error)
        raise
    events.close()


def _measured(
    past: PastRun, epoch: PastEpoch, phase: str | None = None, output: PyTree = None
) -> Metrics:
    """Give what an epoch, or one phase of it, measured."""
    values = epoch.metrics
    if phase is not None:
        values = {name: value for name, value in values.items() if _is_of(phase, name)}
    return Metrics(values, output=output, epochs=past.row.epochs or past.epochs[-1].epoch)


def _is_of(phase: str, metric: str) -> bool:
    return metric.startswith(f"{phase}/")


def _check(events: HookRunner, past: PastRun, phases: Iterable[str], state: TrainState) -> None:
    """Refuse hooks that would never fire, since what they read is not on record."""
    recorded = dict.fromkeys(name for epoch in past.epochs for name in epoch.metrics)
    shown = [name for name in recorded if not name.startswith("time/")]
    absent = f"is not on record of run {past.row.name!r}"
    for event in ("start", *phases, "epoch", "end"):
        known = [name for name in recorded if event not in phases or _is_of(event, name)]
        for hook in events.order[event]:
            if not known:
                raise ValueError(
                    f"hook {hook.name!r} runs at phase {event!r}, which {absent}"
                    f"{suggest_and_list(event, shown)}"
                )
            for key in (*hook.reads, *hook.expects):
                if key not in known:
                    raise ValueError(
                        f"hook {hook.name!r} at {event!r} reads {key!r}, which {absent}"
                        f"{suggest_and_list(key, shown)}"
                    )
            known += hook.writes(state) if callable(hook.writes) else hook.writes
