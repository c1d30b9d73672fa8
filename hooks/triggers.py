"""Triggers: functions that take a hook and decide when it runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from hooks.combining import UNGATED_EVENTS, HookLike, join_parts
from trainer import TrainState
from trainer.checks.arguments import describe_value, require_function, require_integer
from trainer.hook import Gate, Hook, HookState, flatten_hooks, get_hook_state, set_hook_state
from trainer.state import read_epoch, read_step_count


def every(n: int, hook: HookLike, *, start: int = 0) -> HookLike:
    """Run a hook in every n-th epoch, counted from 1, from epoch `start` on; `n` is at least 1.

    >>> every(1, print) is print
    True
    """
    require_integer("every(n, hook): n", n, 1)
    if n == 1 and start <= 1:
        return hook

    def is_due(number: int) -> bool:
        return number >= max(start, 1) and number % n == 0

    def is_open(state: TrainState, metrics: Mapping[str, float], event: str) -> bool:
        return is_due(read_epoch(state) + (event != "epoch"))  # a phase is within the epoch

    return _add_gate(hook, lambda part: (Gate(is_open, by_epoch=is_due), ()))


def every_steps(n: int, hook: HookLike) -> HookLike:
    """Run a hook if `step // n` has grown since the hook last ran; `n` is at least 1."""
    require_integer("every_steps(n, hook): n", n, 1)

    def gate(part: Hook) -> tuple[Gate, tuple[HookState, ...]]:
        name = f"every_steps/{n}/{part.name}"

        def count(state: TrainState) -> int:
            return read_step_count(state) // n

        def has_grown(state: TrainState, metrics: Mapping[str, float], event: str) -> bool:
            return count(state) > get_hook_state(state, name, lambda state: 0)

        counted = Gate(has_grown, lambda state: set_hook_state(state, name, count(state)))
        return counted, (HookState(name, count),)

    return _add_gate(hook, gate)


def when(predicate: Callable[[TrainState, Mapping[str, float]], bool], hook: HookLike) -> HookLike:
    """Run a hook if a predicate `(state, metrics) -> bool` returns True.

    The predicate is called once an event, when the hook's first part is due.

    >>> def stop(state, metrics):
    ...     return state.replace(stop=True)
    >>> import jax
    >>> state = TrainState.create(params={}, rng=jax.random.key(0))
    >>> when(lambda state, metrics: metrics["loss"] < 1, stop)(state, {"loss": 0.5}).stop
    True
    """
    form = "(state, metrics) -> bool"
    require_function("when(predicate, hook) takes a predicate, which", predicate, form)

    def ask(state: TrainState, metrics: Mapping[str, float], event: str) -> bool:
        answer = predicate(state, metrics)
        if isinstance(answer, TrainState):
            raise TypeError(
                f"the predicate of when(predicate, hook) must be a function {form}; it returned a "
                "TrainState, as a hook does: the predicate comes first"
            )
        return answer

    shared = Gate(ask)
    return _add_gate(hook, lambda part: (shared, ()))


def once(hook: HookLike) -> HookLike:
    """Run a hook the first time that it is due only, across resumes."""

    def gate(part: Hook) -> tuple[Gate, tuple[HookState, ...]]:
        name = f"once/{part.name}"
        return Gate(
            lambda state, metrics, event: not get_hook_state(state, name, lambda state: False),
            lambda state: set_hook_state(state, name, True),
        ), (HookState(name, lambda state: False),)

    return _add_gate(hook, gate)


def on(event: str, hook: HookLike) -> HookLike:
    """Run a hook at `start`, after a phase (its name), at `epoch`, `end` or `error`.

    Raises:
        ValueError: a part of the hook already has an event.

    >>> def greet(state, metrics):
    ...     return state
    >>> on("start", greet).at
    'start'
    """
    if not isinstance(event, str):
        raise TypeError(
            "on(event, hook) needs the name of an event first, such as 'end'; got "
            f"{describe_value(event)}"
        )
    parts = flatten_hooks(hook)
    for part in parts:
        if part.event is not None:
            raise ValueError(
                f"hook {part.name!r} runs at {part.event!r} already and cannot move to {event!r}"
            )
    return join_parts([dataclasses.replace(part, event=event) for part in parts])


def _add_gate(
    hook: HookLike, gate: Callable[[Hook], tuple[Gate, tuple[HookState, ...]]]
) -> HookLike:
    """Add a gate to the parts that run at phases and at `epoch`."""

    def add(part: Hook) -> Hook:
        if part.at in UNGATED_EVENTS:
            return part
        added, hook_states = gate(part)
        return dataclasses.replace(
            part, gates=(added, *part.gates), hook_states=(*part.hook_states, *hook_states)
        )

    return join_parts([add(part) for part in flatten_hooks(hook)])
