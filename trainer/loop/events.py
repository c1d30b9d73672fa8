"""Events: run their hooks in order, check what each returns, and time it."""

from __future__ import annotations

import dataclasses
import time
from collections import ChainMap
from collections.abc import MutableMapping, Sequence

import jax

from trainer.hook import STAGES, Gate, Hook, Hooks, Interrupt, flatten_hooks
from trainer.host.exception_notes import annotate_errors
from trainer.host.processes import StopReasons, fail_together, failing_alone
from trainer.host.signals import ReceivedSignal
from trainer.host.time_spans import span
from trainer.loop.hook_checks import check_hook_result
from trainer.loop.hook_order import check_hook_events, sort_hooks
from trainer.loop.lockstep import Lockstep
from trainer.loop.observer_views import ObserverView
from trainer.loop.shutdown import close_all
from trainer.phases.buffers.state_buffers import has_same_arrays
from trainer.phases.in_place_changes import MutationGuard, add_write_remedy
from trainer.phases.metrics import Metrics
from trainer.state import PyTree, TrainState


class HookRunner:
    """The hooks of one run, by event and in the order of execution.

    Args:
        hooks: anything that `flatten_hooks` accepts.
        phases: names of the program's phases, each an event.
        donate: whether phases reuse the buffers of the states that hooks return.

    Raises:
        ValueError: a hook has an unknown event or stage, or two keep a hook state of one name.
    """

    def __init__(self, hooks: Hooks, phases: Sequence[str], *, donate: bool = True) -> None:
        self.hooks = flatten_hooks(hooks)
        self._donate = donate
        events = ("start", *phases, "epoch", "end", "error")
        check_hook_events(self.hooks, events)
        self.order = {event: sort_hooks(self.hooks, event) for event in events}
        self.interrupt: str | None = None
        """Reason of an `Interrupt` that a hook raised."""
        self.received = ReceivedSignal()
        """The signal that this process received."""
        self.latest: tuple[TrainState, Metrics] | None = None
        """The newest state and its metrics."""
        self._seconds = {hook.name: 0.0 for hook in self.hooks}
        self._together = Lockstep() if jax.process_count() > 1 else None
        self._observed: set[str] = set()

    @property
    def readable(self) -> TrainState | None:
        """The newest state, or None if a phase has used it up."""
        state = self.latest[0] if self.latest else None
        return None if state is None or has_deleted_arrays(state) else state

    @property
    def prepares(self) -> bool:
        """Whether a hook of an epoch may send computations to the device before its turn."""
        return any(hook.prepare for hook in self.order["epoch"])

    def prepare(self, state: TrainState, number: int, *, may_wait: bool) -> bool:
        """Let the hooks of epoch `number` send computations to the device before their turn.

        `state` is what its phases will leave. Those that may wait for the host take part only if
        `may_wait`: else the time of the epoch would be theirs, too. Returns whether any did.
        """
        prepared = False
        for hook in self.order["epoch"]:
            if hook.prepare is None or (hook.prepare_waits and not may_wait):
                continue
            if all(gate.by_epoch and gate.by_epoch(number) for gate in hook.gates):
                where = f"in preparing hook {hook.name!r} of epoch {number}"
                with annotate_errors(where), span("prepare", hook.name):
                    hook.prepare(state)
                prepared = True
        return prepared

    def run(
        self, event: str, state: TrainState, metrics: Metrics, *, stages: Sequence[str] = STAGES
    ) -> tuple[TrainState, Metrics]:
        """Run the hooks of an event, in order.

        Scores of observers are seen by observers only: the other hooks run on all processes, and
        decide by values that are the same on all.

        After an `Interrupt` the other hooks still run, so that what is saved is a whole event.

        Returns:
            The state, scores cleared, and the metrics with the scores merged in.
        """
        with span("event", event):
            self.latest = state, metrics
            if self._together is not None:
                self._together.begin(event, metrics)
                if event == "epoch":
                    with self._together.holding_failure(), failing_alone():
                        self._check_background(event, state)
            elif event != "error":
                self._check_background(event, state)
            answers: dict[Gate, bool] = {}
            turn = _Turn(event, answers, ChainMap({}, answers))
            if event == "end":  # hooks that read all records find the last ones there
                self.flush()
                turn.flushed = True
            here = [hook for hook in self.order[event] if hook.stage in stages]
            if self._together is None:
                for hook in here:
                    state, metrics = self._run_hook(hook, state, metrics, turn)
            else:
                state, metrics = self._run_together(here, state, metrics, turn)
            return state.replace(scores={}) if state.scores else state, metrics

    def _run_together(
        self, hooks: Sequence[Hook], state: TrainState, metrics: Metrics, turn: _Turn
    ) -> tuple[TrainState, Metrics]:
        """Run hooks on several processes: all together, but observers on the main process.

        Before the saves all agree on why the run may end, on the times of the epoch, and whether an
        observer, or work in the background, failed. The main process decides which saves are due:
        their conditions may read its clock.
        """
        together = self._together
        assert together is not None
        answers = turn.answers
        agreeing = turn.event not in ("end", "error")  # at the end saves come first
        saves = [hook for hook in hooks if hook.stage == "save" and agreeing]
        due: set[int] | None = None
        given = state

        def settle() -> set[int]:
            nonlocal metrics
            where = f"{turn.event!r} of {format_epoch(state, turn.event)}"
            own = StopReasons(state.stop, self.interrupt is not None, self.received.number)
            seen = metrics.without(self._observed)
            together.changed = not has_same_arrays(given, state)
            due = together.settle(where, own, saves, state, seen, answers, self._flush_alone)
            turn.flushed, metrics = bool(due), together.share_times(metrics)
            return {id(hook) for hook in due}

        for hook in hooks:
            if hook.stage == "observe":
                view = together.prepare_view(hook, state, metrics, turn.observer_answers)
                if view is not None:
                    with together.holding_failure(turn.event):
                        state, metrics = self._run_hook(hook, state, metrics, turn, view)
                continue
            if agreeing and hook.stage == "save":
                due = settle() if due is None else due
                if id(hook) not in due:
                    continue
                answers.update(dict.fromkeys(hook.gates, True))
            state, metrics = self._run_hook(hook, state, metrics, turn)
        observed = any(hook.stage == "observe" for hook in hooks) and turn.event != "error"
        if due is None and (turn.event == "epoch" or observed):
            settle()
        return state, metrics

    def _run_hook(
        self,
        hook: Hook,
        state: TrainState,
        metrics: Metrics,
        turn: _Turn,
        view: ObserverView | None = None,
    ) -> tuple[TrainState, Metrics]:
        """Run a hook if it is due; return the state and the metrics with its scores."""
        started = time.perf_counter()
        observing = hook.stage == "observe"
        seen = metrics if observing else metrics.without(self._observed)
        if self._together is not None and not observing:
            seen = self._together.delay_times(seen)
        asked = turn.observer_answers if observing else turn.answers
        try:
            shown, guard = state, turn.guard
            if view is not None:
                shown, seen = view.state, view.metrics
                guard = MutationGuard(shown, seen.output)
            elif guard is None:
                guard = turn.guard = MutationGuard(state, metrics.output)
            due = hook.is_due(shown, seen, asked)
            if hook.gates and not due:
                guard.check_unchanged(f"a condition of hook {hook.name!r}")
            if not due:
                return state, metrics
            if hook.stage == "save" and not turn.flushed:
                turn.flushed = True
                self.flush()
            after = self._apply(hook, shown, seen, guard)
            if view is not None:
                after = view.restore(after)
            if after is not state:
                after = check_hook_result(hook, state, after, donate=self._donate)
                if turn.guard is not None:
                    turn.guard.follow(after)
        except Exception as error:
            add_write_remedy(error)
            where = format_epoch(state, turn.event)
            error.add_note(f"in hook {hook.name!r} at {turn.event!r} of {where}")
            raise
        finally:
            self._seconds[hook.name] += time.perf_counter() - started
        if after.scores is not state.scores:
            if observing:
                self._observed |= after.scores.keys() - state.scores.keys()
            metrics = metrics.with_scores(after.scores)
        self.latest = after, metrics
        return after, metrics

    def _apply(
        self, hook: Hook, state: TrainState, metrics: Metrics, guard: MutationGuard
    ) -> TrainState:
        """Run one hook, and check that it changed nothing in place."""
        with span("hook", hook.name):
            try:
                after = hook.apply(state, metrics)
            except Interrupt as interrupt:
                self.interrupt, after = str(interrupt) or hook.name, state
            guard.check_unchanged(f"hook {hook.name!r}")
            return after

    def decide(self, state: TrainState) -> StopReasons:
        """Return why the run may end after an epoch, the same on all processes."""
        if self._together is not None:
            return self._together.reasons
        return StopReasons(state.stop, self.interrupt is not None, self.received.number)

    def is_ending(self, state: TrainState) -> bool:
        """Return whether the run ends after this epoch, as far as all processes know alike."""
        own = self.interrupt is not None or self.received.number != 0
        return state.stop or (own and self._together is None)

    def changed_arrays(self, before: TrainState, after: TrainState) -> bool:
        """Return whether hooks changed an array of the device part, on any process."""
        changed = self._together is not None and self._together.changed
        return changed or not has_same_arrays(before, after)

    def _check_background(self, event: str, state: TrainState) -> None:
        """Raise an error that occurred in the background since the last event."""
        for hook in self.hooks:
            if hook.check_background:
                try:
                    hook.check_background()
                except Exception as error:
                    where = format_epoch(state, event)
                    error.add_note(f"of hook {hook.name!r}, found at {event!r} of {where}")
                    raise

    def pop_hook_times(self) -> dict[str, float]:
        """Return the seconds that each hook took since the last call."""
        times = {f"time/hook/{name}": seconds for name, seconds in self._seconds.items()}
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        return times

    def flush(self) -> None:
        """Make records durable; a checkpoint is published only after them."""
        with fail_together("making records durable"):
            self._flush_alone()

    def _flush_alone(self) -> None:
        with failing_alone():
            for hook in self.hooks:
                if hook.flush:
                    with span("flush", hook.name):
                        hook.flush()

    def close(self, error: BaseException | None = None) -> None:
        """Close all hooks in reverse order, then what they share; see `close_all`."""
        close_all(self.hooks, error)


@dataclasses.dataclass(slots=True)
class _Turn:
    """What the hooks of one event share."""

    event: str
    answers: MutableMapping[Gate, bool]
    observer_answers: MutableMapping[Gate, bool]
    guard: MutationGuard | None = None
    flushed: bool = False


def has_deleted_arrays(tree: PyTree) -> bool:
    """Return whether a phase has used up an array of a tree, by donation."""
    leaves = jax.tree.leaves(tree)
    return any(isinstance(leaf, jax.Array) and leaf.is_deleted() for leaf in leaves)


def format_epoch(state: TrainState, event: str = "epoch") -> str:
    """Format the epoch of a state, also of one that was used up; at a phase, the one it is in."""
    if has_deleted_arrays(state.epoch):
        return "an epoch"
    within = event not in ("start", "epoch", "end", "error")
    return f"epoch {int(state.epoch) + within}"
