"""Events: which hooks run when, in what order, checked, timed, and closed whatever happens."""

from __future__ import annotations

import logging
import time
from collections import ChainMap
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from trainer.checks.suggestions import suggest_and_list
from trainer.hook import STAGES, Gate, Hook, Interrupt, flatten_hooks
from trainer.host.processes import is_main_process
from trainer.host.time_spans import span
from trainer.loop.hook_checks import check_hook_result
from trainer.loop.metric_clashes import check_metric_clashes, get_written_scores
from trainer.loop.missing_metrics import format_missing_metric
from trainer.loop.shutdown import close_all
from trainer.phases.in_place_changes import MutationGuard, add_write_remedy, read_only
from trainer.phases.metrics import Metrics
from trainer.phases.state_buffers import copy_state, unshare_buffers
from trainer.state import PyTree, TrainState

log = logging.getLogger("entracte")

TIMES = ("time/epoch_seconds", "time/steps_per_second")
"""Metrics that the loop itself measures."""


class HookRunner:
    """The hooks of one run, in the order of execution.

    Args:
        hooks: anything that `flatten_hooks` takes.
        phases: names of the program's phases, each an event.

    Raises:
        ValueError: an unknown event or stage, or two hooks with memory and one name.
    """

    def __init__(self, hooks: Any, phases: Sequence[str]) -> None:
        self.hooks = flatten_hooks(hooks)
        self.names = ("start", *phases, "epoch", "end", "error")
        self.interrupt: str | None = None
        self.first: TrainState | None = None
        self.latest: tuple[TrainState, Metrics] | None = None
        self.seconds: dict[str, float] = {hook.name: 0.0 for hook in self.hooks}
        self._lead = is_main_process()
        self._observed: set[str] = set()
        for hook in self.hooks:
            if hook.at not in self.names:
                raise ValueError(
                    f"hook {hook.name!r} runs at {hook.at!r}, which is no event of this program"
                    f"{suggest_and_list(hook.at, self.names)}"
                )
            if hook.stage not in STAGES:
                raise ValueError(f"hook {hook.name!r} is of stage {hook.stage!r}; one of {STAGES}")
        self._refuse_shared_names()
        self.order = {event: sort_hooks(self.hooks, event) for event in self.names}

    def _refuse_shared_names(self) -> None:
        seen: set[str] = set()
        for hook in self.hooks:
            for memory in hook.hook_states:
                if memory.name in seen:
                    raise ValueError(
                        f"two hooks keep a memory named {memory.name!r}; a name belongs to one: "
                        "give one of them another name or subject"
                    )
                seen.add(memory.name)

    def check_requirements(self, state: TrainState, measured: Mapping[str, Sequence[str]]) -> None:
        """Check that all that hooks read or need is there before them.

        Args:
            state: to train on.
            measured: phase to the names of its metrics.

        Raises:
            ValueError: a hook lacks what it reads or needs, or hides what something else writes.
        """
        check_metric_clashes(self.order, measured, state)
        known, observed = list[str](), list[str]()
        times = [*TIMES, *(f"time/hook/{name}" for name in self.seconds)]
        remembered = {memory.name for hook in self.hooks for memory in hook.hook_states}
        for event in self.names:
            known += measured.get(event, ()) if event != "epoch" else times
            scores, looked = list[str](), list[str]()
            kept_before: set[str] = set()
            for hook in self.order[event]:
                observing = hook.stage == "observe"
                seen = [*known, *scores, *(observed + looked if observing else ())]
                if missing := next(
                    (k for k in (*hook.reads, *hook.expects) if k not in seen), None
                ):
                    raise ValueError(
                        format_missing_metric(hook, missing, seen, self._written(state, measured))
                    )
                self._check_needs(hook, remembered, kept_before)
                (looked if observing else scores).extend(get_written_scores(hook, state))
                kept_before |= {memory.name for memory in hook.hook_states}
            if event == "epoch":
                known, observed = known + scores, observed + looked

    def _written(
        self, state: TrainState, measured: Mapping[str, Sequence[str]]
    ) -> dict[str, tuple[str, str]]:
        """Map each metric to the event at which it is first written, and by whom."""
        found: dict[str, tuple[str, str]] = {}
        for event in self.names:
            for name in measured.get(event, ()):
                found.setdefault(name, (event, f"phase {event!r}"))
            for hook in self.order[event]:
                for name in get_written_scores(hook, state):
                    found.setdefault(name, (event, f"{hook.stage} hook {hook.name!r}"))
        return found

    def _check_needs(self, hook: Hook, remembered: set[str], kept_before: set[str]) -> None:
        for name in hook.required_hook_states:
            if name not in kept_before:
                there = "is not before it" if name in remembered else "is not in the chain"
                raise ValueError(
                    f"hook {hook.name!r} needs the memory of {name!r}, which {there}; place it "
                    f"before {hook.name!r} at {hook.at!r}"
                )

    def init_hook_states(self, state: TrainState) -> TrainState:
        """Add the first memory of hooks that have none yet, and leave out what nobody keeps.

        What observers remember lives on the lead, which alone runs them.
        """
        memory = {
            name: state.hook_state[name] if name in state.hook_state else init(state)
            for hook in self.hooks
            if self._lead or hook.stage != "observe"
            for name, init in hook.hook_states
        }
        read_only(memory)
        return unshare_buffers(state.replace(hook_state=memory))

    def restore(self, state: TrainState) -> tuple[TrainState, Metrics]:
        """Let hooks bring back an earlier run.

        Args:
            state: template, with every hook's first memory.

        Returns:
            The state to go on from, which lacks memories that the earlier run did not know, and the
            metrics of its last event.
        """
        metrics = Metrics()
        for hook in self.hooks:
            if hook.restore and (restored := hook.restore(state)):
                state, metrics = restored.state, Metrics(restored.scores)
                log.info("resuming from epoch %d, restored by %s", int(state.epoch), hook.name)
        return state, metrics

    def read_history(self, state: TrainState, metrics: Metrics) -> list[dict[str, float]]:
        """Give what is on record of the epochs of a run that is complete.

        The last is what was restored with the state; those before it are what a hook kept, where
        one keeps them: on the lead of one process, since on several all shall see the same.
        """
        if not metrics:
            return []
        epoch, before = int(state.epoch), list[dict[str, float]]()
        for hook in self.hooks if jax.process_count() == 1 else ():
            if hook.read_history and not before:
                before = [dict(one) for one in hook.read_history()]
        kept = [one for one in before if one.pop("epoch") < epoch]
        return [*kept, metrics.as_dict()]

    @property
    def readable(self) -> TrainState | None:
        """The newest state, where no phase used it up."""
        state = self.latest[0] if self.latest else None
        return None if state is None or _has_deleted_arrays(state) else state

    def run(
        self, event: str, state: TrainState, metrics: Metrics, *, stages: Sequence[str] = STAGES
    ) -> tuple[TrainState, Metrics]:
        """Run the hooks of an event, in order.

        What observers score only observers see: the others, which on several processes run on all
        of them, decide by what is the same everywhere.

        An `Interrupt` lets the others run, so that what is committed is a whole event.

        Returns:
            The state, scores cleared, and the metrics with the scores merged in.
        """
        with span("event", event):
            return self._run(event, state, metrics, stages)

    def _run(
        self, event: str, state: TrainState, metrics: Metrics, stages: Sequence[str]
    ) -> tuple[TrainState, Metrics]:
        answers: dict[Gate, bool] = {}
        observers: ChainMap[Gate, bool] = ChainMap({}, answers)
        flushed = False
        shadow: MutationGuard | None = None
        self.latest = state, metrics
        if event != "error":
            self._check_background(event, state)
        if event == "end":  # those who look at all records find the last ones there
            flushed = True
            self.flush()
        for hook in self.order[event]:
            if hook.stage not in stages or (hook.stage == "observe" and not self._lead):
                continue
            started = time.perf_counter()
            observing = hook.stage == "observe"
            seen = metrics if observing else metrics.without(self._observed)
            if shadow is None:
                shadow = MutationGuard(state, metrics.output)
            try:
                if not hook.is_due(state, seen, observers if observing else answers):
                    if hook.gates:
                        shadow.check_unchanged(f"a condition of hook {hook.name!r}")
                    continue
                if hook.stage == "save" and not flushed:
                    flushed = True
                    self.flush()
                with span("hook", hook.name):
                    try:
                        after = hook.apply(state, seen)
                    except Interrupt as interrupt:
                        self.interrupt, after = str(interrupt) or hook.name, state
                    shadow.check_unchanged(f"hook {hook.name!r}")
                    if after is not state:
                        after = check_hook_result(hook, state, after)
                        shadow.follow(after)
            except Exception as error:
                add_write_remedy(error)
                error.add_note(f"in hook {hook.name!r} at {event!r} of {_epoch(state, event)}")
                raise
            finally:
                self.seconds[hook.name] += time.perf_counter() - started
            if after.scores is not state.scores:
                if observing:
                    self._observed |= after.scores.keys() - state.scores.keys()
                metrics = metrics.with_scores(after.scores)
            state = after
            self.latest = state, metrics
        return state.replace(scores={}) if state.scores else state, metrics

    def _check_background(self, event: str, state: TrainState) -> None:
        """Raise what failed behind the loop's back since the last event."""
        for hook in self.hooks:
            if hook.check_background:
                try:
                    hook.check_background()
                except Exception as error:
                    error.add_note(
                        f"of hook {hook.name!r}, found at {event!r} of {_epoch(state, event)}"
                    )
                    raise

    def pop_hook_times(self) -> dict[str, float]:
        """Give the seconds that each hook took since this was last asked."""
        times = {f"time/hook/{name}": seconds for name, seconds in self.seconds.items()}
        self.seconds = dict.fromkeys(self.seconds, 0.0)
        return times

    def flush(self) -> None:
        """Make records durable; a commit is final only after them."""
        for hook in self.hooks:
            if hook.flush:
                with span("flush", hook.name):
                    hook.flush()

    def run_error_hooks(self, error: BaseException) -> None:
        """Run the `error` hooks on the newest readable state; they cannot hide the error."""
        if not self.order["error"] or self.latest is None or not isinstance(error, Exception):
            return  # before the run has begun there is nothing to see
        try:
            self.run("error", *self._readable())
        except Exception as failure:
            error.add_note(f"and an error hook failed: {failure!r}")

    def _readable(self) -> tuple[TrainState, Metrics]:
        """Give the newest state that can be read: a phase that failed used up the one it was given.

        That is the latest, or the last commit's, or the one that `fit` was called with, which was
        copied. On several processes no commit is read: the others may be gone, or not have failed.
        """
        assert self.latest is not None
        assert self.first is not None
        state, metrics = self.latest
        if not _has_deleted_arrays(state):
            return self.latest
        used_up, restoring = state, jax.process_count() == 1
        try:
            state, metrics = self.restore(state) if restoring else (state, metrics)
        except Exception:
            log.exception("the last commit cannot be shown to error hooks")
        if state is used_up:
            state, metrics = copy_state(self.first), Metrics()
        log.warning("the failed phase had used up the state: error hooks see %s", _epoch(state))
        return self.init_hook_states(state), metrics

    def close(self, error: BaseException | None = None) -> None:
        """Close all hooks in reverse order, then what they share, whatever happened.

        Args:
            error: that ends the run: failures to close are noted on it. Without one, the first
                failure is raised.
        """
        close_all(self.hooks, error)


def _has_deleted_arrays(state: PyTree) -> bool:
    leaves = jax.tree.leaves(state)
    return any(isinstance(leaf, jax.Array) and leaf.is_deleted() for leaf in leaves)


def _epoch(state: TrainState, event: str = "epoch") -> str:
    """Name the epoch, even of a state that was used up; at a phase it is the one under way."""
    if _has_deleted_arrays(state.epoch):
        return "an epoch"
    under_way = event not in ("start", "epoch", "end", "error")
    return f"epoch {int(state.epoch) + under_way}"


def sort_hooks(hooks: Sequence[Hook], event: str) -> tuple[Hook, ...]:
    """Give the hooks of an event in the order of execution: by stage, then as listed.

    At `end`, commits come first: what hooks change there is returned and not committed.
    """
    stages = ("save", "control", "observe") if event == "end" else STAGES
    here = [hook for hook in hooks if hook.at == event]
    return tuple(sorted(here, key=lambda hook: stages.index(hook.stage)))
