"""Run hooks again over a recorded run, to see what they would have done."""

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
from trainer.checkpoints.storage.directory_lock import DirectoryInUse, find_holder
from trainer.checks.suggestions import suggest_and_list
from trainer.hook import SKIP, Gate, Hooks, HookState, flatten_hooks
from trainer.loop.events import HookRunner
from trainer.loop.hook_states import init_hook_states
from trainer.runs import Store
from trainer.runs.run_directory import claim_directory
from trainer.state import PyTree


class BacktestEpoch(NamedTuple):
    """What hooks did at an epoch."""

    epoch: int
    step: int
    scores: dict[str, float]
    """Scores that they wrote."""
    hook_state: dict[str, PyTree]
    """Hook states after the epoch, by name."""
    hyperparams: dict[str, float]
    """The optimizer's hyperparameters after the epoch; empty if no state was given."""


class Backtest(NamedTuple):
    """What hooks would have done."""

    run: str
    """Its name."""
    epochs: list[BacktestEpoch]
    """All recorded epochs, or those until hooks ended the run."""
    stop_epoch: int | None
    """The epoch at which hooks ended it; None if they let it continue."""
    stopped_by: str
    """The hook that ended it, or empty."""
    stop_reason: str
    """`stop`, the reason of an interrupt, or empty."""


def backtest(
    hooks: Hooks,
    run: str | os.PathLike[str],
    *,
    store: str | os.PathLike[str] | Store | None = None,
    state: TrainState | None = None,
) -> Backtest:
    """Run hooks again over a recorded run, without training: what would they have done?

    At each epoch they see the recorded metrics and their own hook states; hooks at a phase see its
    metrics. The backtest ends where they end the run. Observers do what they always do, so that
    TensorBoard can be filled after the fact: give them separate writers, since the run's own would
    overwrite its records. Hooks that save do nothing. A clock or a file that a hook reads is
    today's.

    Parameters and the like are known at epochs whose checkpoint still exists, if a state is given;
    a hook that uses them at another epoch raises an error. With a state, the values that hooks set
    for training (the optimizer's hyperparameters, what is frozen, the weights of lessons) are kept
    from epoch to epoch.

    Args:
        hooks: anything that `fit` takes.
        run: directory of the run, or its name in the store.
        store: that has the run, as for `trainer.runs.Run`; or an open store.
        state: that the run began with, such as `task.init(key, example)`.

    Raises:
        FileNotFoundError: there is no store.
        DirectoryInUse: an observer would record in the run itself.
        KeyError: the store has no such run.
        NotRecorded: a hook uses what was not recorded.
        ValueError: nothing of the run was recorded, or not what a hook reads.

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
    """Run hooks again over a loaded run, see `backtest`."""
    trained = [epoch for epoch in past.epochs if epoch.epoch > 0]
    if not trained:
        raise ValueError(
            f"no epoch of run {past.row.name!r} was recorded: give its log_metrics a writer "
            "hooks.Database(run), or choose another run"
        )
    states = PastStates(past, state)
    observer = _HookObserver(states)
    parts = [observer.wrap(part) for part in flatten_hooks(hooks)]
    phases = dict.fromkeys(p.at for p in parts if p.at not in ("start", "epoch", "end", "error"))
    events = HookRunner(parts, list(phases))
    done: list[BacktestEpoch] = []
    with _lock_run(past.row.directory, parts), contextlib.ExitStack() as stack:
        stack.push(lambda kind, error, trace: events.close(error))
        _check(events, past, phases, states.first)
        now = init_hook_states(events.hooks, states.first)
        before = next((epoch for epoch in past.epochs if epoch.epoch == 0), PastEpoch(0, 0, {}))
        now, metrics = events.run("start", now, _select_metrics(past, before))
        for epoch in trained:
            if now.stop or events.interrupt is not None:
                break
            observer.scores = {}
            for phase in phases:
                now = states.after_phase(phase, epoch, now)
                now, _ = events.run(phase, now, _select_metrics(past, epoch, phase, states.output))
            now, metrics = events.run(
                "epoch", states.after_epoch(epoch, now), _select_metrics(past, epoch)
            )
            numbers = states.hyperparams(now)
            done.append(BacktestEpoch(*epoch[:2], observer.scores, now.hook_state, numbers))
        if now.stop or events.interrupt is None:
            events.run("end", now, metrics)
        events.flush()
    interrupted = not now.stop and events.interrupt is not None
    return Backtest(
        run=past.row.name,
        epochs=done,
        stop_epoch=int(now.epoch) if now.stop or interrupted else None,
        stopped_by=observer.interrupted_by if interrupted else observer.stopped_by,
        stop_reason="stop" if now.stop else events.interrupt or "",
    )


class _HookObserver:
    """Observes what each hook does, and tells the states which hook runs."""

    def __init__(self, states: PastStates) -> None:
        self._states = states
        self._gates: dict[Gate, Gate] = {}
        self.scores: dict[str, float] = {}
        self.stopped_by = self.interrupted_by = ""

    def wrap(self, hook: Hook) -> Hook:
        """Return a hook that is observed; a hook that saves becomes one that does nothing."""
        if hook.stage == "save":
            return dataclasses.replace(hook, function=SKIP, gates=(), expects=(), reads=())
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

        track = self._states.track_hook(name)  # hooks that share a gate share the observed one
        gates = [(gate, Gate(track(gate.is_open), gate.after_fire)) for gate in hook.gates]
        return dataclasses.replace(
            hook,
            function=run,
            writes=track(writes) if callable(writes) else writes,
            hook_states=tuple(HookState(key, track(init)) for key, init in hook.hook_states),
            gates=tuple(self._gates.setdefault(*pair) for pair in gates),
            restore=None,
        )


@contextlib.contextmanager
def _lock_run(directory: str, parts: Sequence[Hook]) -> Iterator[None]:
    """Prevent observers from recording in the run itself, whose records would be superseded.

    If another process trains there, the run's own lock does that.
    """
    observing = any(part.stage == "observe" for part in parts)
    if not observing or not os.access(directory, os.W_OK) or find_holder(directory, by_others=True):
        yield
        return
    try:
        with claim_directory(Path(directory)):
            yield
    except DirectoryInUse as error:
        error.add_note("the run is being backtested: give its observers separate writers")
        raise


def _select_metrics(
    past: PastRun, epoch: PastEpoch, phase: str | None = None, output: PyTree = None
) -> Metrics:
    """Return the metrics of an epoch, or of one phase of it."""
    values = epoch.metrics
    if phase is not None:
        values = {name: v for name, v in values.items() if name.startswith(f"{phase}/")}
    return Metrics(values, output=output, epochs=past.row.epochs or past.epochs[-1].epoch)


def _check(events: HookRunner, past: PastRun, phases: Iterable[str], state: TrainState) -> None:
    """Refuse hooks that would never fire, since what they read was not recorded."""
    recorded = dict.fromkeys(name for epoch in past.epochs for name in epoch.metrics)
    shown = [name for name in recorded if not name.startswith("time/")]
    absent = f"was not recorded in run {past.row.name!r}"
    for event in ("start", *phases, "epoch", "end"):
        known = [name for name in recorded if event not in phases or name.startswith(f"{event}/")]
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
