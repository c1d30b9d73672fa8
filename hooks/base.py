"""Hooks from plain functions: what a function declares, and hooks that keep a hook state."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

from hooks.combining import UNGATED_EVENTS, Chain, HookLike, chain, join_parts
from trainer import TrainState
from trainer.checks.arguments import describe_value, require_function
from trainer.checks.suggestions import suggest_and_list
from trainer.hook import (
    Hook,
    HookFunction,
    HookState,
    flatten_hooks,
    get_hook_state,
    set_hook_state,
)
from trainer.state import DEVICE_FIELDS, PyTree

Init = Callable[[TrainState], PyTree]

Update = Callable[[Any, TrainState, Mapping[str, float]], tuple[Any, TrainState]]
"""`(hook_state, state, metrics) -> (hook_state, state)`."""


@overload
def observe(  # type: ignore[overload-overlap]
    hook: Chain, *, gather: str | Sequence[str] = ()
) -> HookLike: ...


@overload
def observe(hook: HookFunction | Hook, *, gather: str | Sequence[str] = ()) -> Hook: ...


def observe(hook: HookLike, *, gather: str | Sequence[str] = ()) -> HookLike:
    """Declare a function an observer: it may write scores and its own hook state, nothing else.

    Observers run after the event's control hooks; on several processes, on the main one alone.
    There an array that is split over processes is shown by its shape and dtype; using its values
    raises RuntimeError. What an observer reads can be gathered for it.

    Args:
        hook: a function or a hook; or a chain of observers, such as `hooks.record(...)`, for which
            something is gathered.
        gather: the field of the state, or the path of a part, `params/head`, that all processes
            gather when the observer is due; or several. It then reads whole, read-only numpy
            arrays. On one process nothing is gathered: all is readable as it is.

    Raises:
        TypeError: gather names no paths.
        ValueError: a chain has hooks that are no observers, or a state has no such field; before
            training, the state has no such part.

    >>> @observe
    ... def show(state, metrics):
    ...     print(metrics["train/loss"])
    ...     return state
    >>> show.stage
    'observe'
    """
    paths = _check_paths(gather)
    parts = flatten_hooks(hook)
    if len(parts) == 1:
        return dataclasses.replace(parts[0], stage="observe", gather=(*parts[0].gather, *paths))
    if not paths or any(part.stage != "observe" for part in parts):
        raise ValueError(
            f"observe declares one hook; got a chain of {len(parts)}, which must be "
            "observers, with gather=..., if something shall be gathered for them"
        )
    return join_parts(
        [
            part
            if part.at in UNGATED_EVENTS
            else dataclasses.replace(part, gather=(*part.gather, *paths))
            for part in parts
        ]
    )


def _check_paths(gather: Any) -> tuple[str, ...]:
    """Return paths in a state as a tuple, after checking their fields."""
    paths = (gather,) if isinstance(gather, str) else gather
    if not isinstance(paths, Sequence) or not all(isinstance(path, str) for path in paths):
        raise TypeError(
            "observe(hook, gather=...) takes a field of the state, 'params', or several; got "
            f"{describe_value(gather)}"
        )
    fields = (*DEVICE_FIELDS, "hook_state")
    for path in paths:
        if (field := path.partition("/")[0]) not in fields:
            raise ValueError(
                f"observe(hook, gather={path!r}): a state has no field {field!r} of arrays"
                f"{suggest_and_list(field, fields)}"
            )
    return tuple(paths)


def reads(*keys: str) -> Callable[[HookFunction | Hook], Hook]:
    """Declare the metrics that a function needs; it does not fire if one is missing.

    `fit` checks before training that something writes them before this hook runs.

    >>> @reads("val/loss")
    ... def stop_when_good(state, metrics):
    ...     return state.replace(stop=metrics["val/loss"] < 0.1)
    >>> stop_when_good.reads
    ('val/loss',)
    """

    _require_names("reads", keys)

    def declare(hook: HookFunction | Hook) -> Hook:
        hook = _require_one_hook(hook, "reads")
        return dataclasses.replace(hook, reads=(*hook.reads, *keys))

    return declare


def writes(*keys: str) -> Callable[[HookFunction | Hook], Hook]:
    """Declare the scores that a function writes, so that later hooks can read them.

    >>> @writes("gap")
    ... def compare(state, metrics):
    ...     gap = metrics["val/loss"] - metrics["train/loss"]
    ...     return state.replace(scores={**state.scores, "gap": gap})
    >>> compare.writes
    ('gap',)
    """

    _require_names("writes", keys)

    def declare(hook: HookFunction | Hook) -> Hook:
        hook = _require_one_hook(hook, "writes")
        if callable(hook.writes):
            raise ValueError(f"hook {hook.name!r} names its scores itself")
        return dataclasses.replace(hook, writes=(*hook.writes, *keys))

    return declare


def rekeys(hook: HookFunction | Hook) -> Hook:
    """Declare that a control hook may replace `state.rng`, the root of all randomness.

    After that all random numbers are different. To draw within a hook use
    `state.key("hook/<name>")`.

    >>> import jax
    >>> @rekeys
    ... def reseed(state, metrics):
    ...     return state.replace(rng=jax.random.key(7))
    >>> reseed.rekeys
    True
    """
    return dataclasses.replace(_require_one_hook(hook, "rekeys"), rekeys=True)


@overload
def stateful(
    name: str, init: Init, update: Update, *, start: None = None, **fields: Any
) -> Hook: ...


@overload
def stateful(name: str, init: Init, update: Update, *, start: Update, **fields: Any) -> Chain: ...


def stateful(
    name: str, init: Init, update: Update, *, start: Update | None = None, **fields: Any
) -> Hook | Chain:
    """Make a hook that keeps a hook state, in `state.hook_state[name]`, saved with the state.

    Args:
        name: unique among the hooks of a run; include the subject, `stop_early/val/loss`.
        init: `(state) -> hook_state`, a pytree of numbers, strings and arrays.
        update: `(hook_state, state, metrics) -> (hook_state, state)`; it keeps the structure and
            types of the hook state.
        start: of the same form; called at `start`, on the restored hook state.
        fields: others of `Hook`, such as `reads`, `writes`, `event`, `stage`.

    >>> def count(hook_state, state, metrics):
    ...     return hook_state + 1, state
    >>> hook = stateful("count", lambda state: 0, count)
    >>> import jax
    >>> state = TrainState.create(params={}, rng=jax.random.key(0))
    >>> hook(hook(state, {}), {}).hook_state
    {'count': 2}
    """
    require_function(f"init of hook {name!r}", init, "(state) -> hook_state")
    run = _bind_hook_state(name, init, update, "update")
    hook = Hook(run, name, hook_states=(HookState(name, init),), **fields)
    if start is None:
        return hook
    begin = _bind_hook_state(name, init, start, "start")
    return chain(Hook(begin, f"{name}/start", event="start", stage=hook.stage), hook)


def _bind_hook_state(name: str, init: Init, update: Update, role: str) -> HookFunction:
    """Make a hook's function of an update: it reads the hook state, and puts the new one back."""
    form = "(hook_state, state, metrics) -> (hook_state, state)"
    require_function(f"{role} of hook {name!r}", update, form)

    def run(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        before = get_hook_state(state, name, init)
        result = update(before, state, metrics)
        if not (
            isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], TrainState)
        ):
            raise TypeError(
                f"{role} of {name!r} must return (hook_state, state); got {result!r:.100}"
            )
        hook_state, after = result
        if hook_state is before and name in state.hook_state:
            return after
        return set_hook_state(after, name, hook_state)

    return run


def _require_names(who: str, keys: tuple[Any, ...]) -> None:
    wrong = next((key for key in keys if not isinstance(key, str)), None)
    if not keys or wrong is not None:
        raise TypeError(
            f"{who} takes the names of metrics one by one, @hooks.{who}('train/loss'); got "
            f"{describe_value(wrong) if keys else 'none'}"
        )


def _require_one_hook(hook: Any, who: str) -> Hook:
    parts = flatten_hooks(hook)
    if len(parts) != 1:
        raise ValueError(f"{who} declares one hook; got a chain of {len(parts)}")
    return parts[0]
