"""Checks before training: what hooks read is written before them, and nothing is overwritten."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import jax

from trainer.checks.pytrees import format_path
from trainer.checks.suggestions import suggest_name
from trainer.hook import Hook
from trainer.phases.phase import Phase
from trainer.state import DEVICE_FIELDS, TrainState, strip_host_fields

TIMES = ("time/epoch_seconds", "time/steps_per_second")
"""Metrics that the loop itself measures."""

Order = Mapping[str, Sequence[Hook]]
"""Event to its hooks, in the order of execution."""

Measured = Mapping[str, Sequence[str]]
"""Phase to the names of its metrics."""


def check_requirements(order: Order, measured: Measured, state: TrainState) -> None:
    """Check that all metrics and hook states that hooks need exist before them.

    Raises:
        ValueError: a hook needs something that does not exist, or overwrites something.
    """
    _check_overwritten_metrics(order, measured, state)
    hooks = [hook for here in order.values() for hook in here]
    times = [*TIMES, *(f"time/hook/{hook.name}" for hook in hooks)]
    kept = {name for hook in hooks for name, _ in hook.hook_states}
    known, observed = list[str](), list[str]()
    for event, here in order.items():
        known += measured.get(event, ()) if event != "epoch" else times
        scores, observed_here, kept_before = list[str](), list[str](), set[str]()
        for hook in here:
            observing = hook.stage == "observe"
            seen = [*known, *scores, *(observed + observed_here if observing else ())]
            for key in (*hook.reads, *hook.expects):
                if key not in seen:
                    later = _find_writers(order, measured, state)
                    raise ValueError(format_missing_metric(hook, key, seen, later))
            for name in hook.required_hook_states:
                if name not in kept_before:
                    where = "is not before it" if name in kept else "is not in the chain"
                    raise ValueError(
                        f"hook {hook.name!r} needs the hook state of {name!r}, which {where}; "
                        f"place it before {hook.name!r} at {hook.at!r}"
                    )
            (observed_here if observing else scores).extend(get_written_scores(hook, state))
            kept_before |= {name for name, _ in hook.hook_states}
        if event == "epoch":
            known, observed = known + scores, observed + observed_here
    _check_gathered(order, state)  # last: the checks above name an average that nobody keeps


def _check_gathered(order: Order, state: TrainState) -> None:
    """Check that there is something at each path that an observer lets gather."""
    hooks = [hook for here in order.values() for hook in here]
    if not any(hook.gather for hook in hooks):
        return
    leaves = jax.tree_util.tree_leaves_with_path(strip_host_fields(state))
    known = [*DEVICE_FIELDS, *(format_path(path) for path, _ in leaves)]
    known += [f"hook_state/{name}" for hook in hooks for name, _ in hook.hook_states]
    for hook in hooks:
        for path in hook.gather:
            inside = "/".join(path.split("/")[:2]) if path.startswith("hook_state/") else path
            if not any(f"{one}/".startswith(f"{inside}/") for one in known):
                parts = {"/".join(one.split("/")[:n]) for one in known for n in (1, 2, 3)}
                raise ValueError(
                    f"hook {hook.name!r} lets {path!r} be gathered, and the state has no such part"
                    f"{suggest_name(path, sorted(parts))}"
                )


def get_written_scores(hook: Hook, state: TrainState) -> Sequence[str]:
    """Return the names of the scores that a hook writes."""
    return hook.writes(state) if callable(hook.writes) else hook.writes


def _find_writers(
    order: Order, measured: Measured, state: TrainState
) -> dict[str, tuple[str, str]]:
    """Map each metric to the event at which it is first written, and what writes it."""
    found: dict[str, tuple[str, str]] = {}
    for event, hooks in order.items():
        for name in measured.get(event, ()):
            found.setdefault(name, (event, f"phase {event!r}"))
        for hook in hooks:
            for name in get_written_scores(hook, state):
                found.setdefault(name, (event, f"{hook.stage} hook {hook.name!r}"))
    return found


def _check_overwritten_metrics(order: Order, measured: Measured, state: TrainState) -> None:
    """Check that no hook writes a metric of a phase, or of another hook of the same name.

    A hook may overwrite a metric that it reads, such as one that smooths it. Two hooks of one name
    that both have gates may take turns.
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


def format_missing_metric(
    hook: Hook, key: str, known: Sequence[str], later: Mapping[str, tuple[str, str]]
) -> str:
    """Return the message of an error: which hook reads what, what exists, and the remedy.

    `later` has the event and the writer of each metric that is written after the hook.

    >>> format_missing_metric(Hook(lambda s, m: s, "mine"), "val/f1", ["val/loss"], {})
    "hook 'mine' at 'epoch' reads 'val/f1', which nothing writes before it (there is: val/loss).
    What measures val/... writes no other: name one of these"
    """
    shown = [name for name in known if not name.startswith("time/")]
    remedy = suggest_name(key, [*known, *later])
    prefix = key.partition("/")[0] + "/"
    if key in later:
        event, writer = later[key]
        remedy = f" The {writer} writes it at {event!r}, after the {hook.stage} hook"
        remedy += f" {hook.name!r}: list the writer before it in the chain, in the same stage"
    elif not remedy and any(name.startswith(prefix) for name in shown):
        remedy = f" What measures {prefix}... writes no other: name one of these"
    elif not remedy:
        what = "evaluate(...)" if key.startswith("val") else "the hook that writes it"
        remedy = f" Place {what} before {hook.name!r} in the chain"
    return (
        f"hook {hook.name!r} at {hook.at!r} reads {key!r}, which nothing writes before "
        f"it (there is: {', '.join(shown) or 'nothing'}).{remedy}"
    )


def check_no_hook_inside(hooks: Iterable[Hook], phases: Iterable[Phase]) -> None:
    """Check that no hook runs at a phase within one of `repeated`.

    Raises:
        ValueError: one does, where the host sees nothing.
    """
    inside = {each.name: phase.name for phase in phases for each in phase.passes}
    for hook in hooks:
        if hook.at in inside:
            raise ValueError(
                f"hook {hook.name!r} runs at {hook.at!r}, inside {inside[hook.at]!r}, whose passes "
                "run in one program that the host does not see into: let it run at "
                f"{inside[hook.at]!r}, or list the phases themselves in the program"
            )
