"""Metrics that two of a program's parts would write: the later one would hide the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trainer.hook import Hook
from trainer.state import TrainState


def check_metric_clashes(
    order: Mapping[str, Sequence[Hook]],
    measured: Mapping[str, Sequence[str]],
    state: TrainState,
) -> None:
    """Check that no hook writes what a phase measures, nor what another of its name writes.

    A hook that reads what it writes, such as one that smooths a metric, knows what it does; and two
    of one name that both have conditions may take turns.

    Args:
        order: event to its hooks, in the order of execution.
        measured: phase to the names of its metrics.
        state: to train on.

    Raises:
        ValueError: one does.
    """
    phases = {name: phase for phase, names in measured.items() for name in names}
    for hooks in order.values():
        before: dict[str, Hook] = {}
        for hook in hooks:
            names = [name for name in get_written_scores(hook, state) if name not in hook.reads]
            if hidden := [name for name in names if name in phases]:
                raise ValueError(
                    f"hook {hook.name!r} writes {hidden[0]!r}, which phase {phases[hidden[0]]!r} "
                    "measures, and would hide it: give what it measures another name, such as "
                    "trainer.evaluation(task.measure, source, name='fitted')"
                )
            other = before.setdefault(hook.name, hook)
            if other is hook or (other.gates and hook.gates):
                continue
            if both := [name for name in get_written_scores(other, state) if name in names]:
                raise ValueError(
                    f"two hooks are called {hook.name!r} and write {both[0]!r}, so that the first "
                    "one's would be lost: leave one out, or give what they measure names of their "
                    "own, such as trainer.evaluation(task.measure, source, name='test')"
                )


def get_written_scores(hook: Hook, state: TrainState) -> Sequence[str]:
    """Name the scores that a hook writes."""
    return hook.writes(state) if callable(hook.writes) else hook.writes
