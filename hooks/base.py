"""Hooks from plain functions: what they declare, and what they remember."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from trainer import TrainState
from trainer.checks.arguments import describe_value, require_function
from trainer.hook import Hook, HookFunction, HookState, flatten_hooks
from trainer.state import PyTree

Update = Callable[[Any, TrainState, Mapping[str, float]], tuple[Any, TrainState]]
"""`(memory, state, metrics) -> (memory, state)`."""


def observe(hook: HookFunction | Hook) -> Hook:
    """Declare a function an observer: it looks, and may write scores and its own memory only.

    Observers run after all control hooks of the event; on several processes on the lead alone.

    >>> @observe
    ... def show(state, metrics):
    ...     print(metrics["train/loss"])
    ...     return state
    >>> show.stage
    'observe'
    """
    return dataclasses.replace(_one(hook, "observe"), stage="observe")


def reads(*keys: str) -> Callable[[HookFunction | Hook], Hook]:
    """Declare the metrics that a function needs; without them it does not fire.

    That something writes them before it is checked before anything trains.

    >>> @reads("val/loss")
    ... def stop_when_good(state, metrics):
    ...     return state.replace(stop=metrics["val/loss"] < 0.1)
    >>> stop_when_good.reads
    ('val/loss',)
    """

    _require_names("reads", keys)

    def declare(hook: HookFunction | Hook) -> Hook:
        hook = _one(hook, "reads")
        return dataclasses.replace(hook, reads=(*hook.reads, *keys))

    return declare


def writes(*keys: str) -> Callable[[HookFunction | Hook], Hook]:
    """Declare the scores that a function writes, so that later hooks may read them.

    >>> @writes("gap")
    ... def compare(state, metrics):
    ...     gap = metrics["val/loss"] - metrics["train/loss"]
    ...     return state.replace(scores={**state.scores, "gap": gap})
    >>> compare.writes
    ('gap',)
    """

    _require_names("writes", keys)

    def declare(hook: HookFunction | Hook) -> Hook:
        hook = _one(hook, "writes")
        if callable(hook.writes):
            raise ValueError(f"hook {hook.name!r} names its scores itself")
        return dataclasses.replace(hook, writes=(*hook.writes, *keys))

    return declare


def rekeys(hook: HookFunction | Hook) -> Hook:
    """Declare that a control hook may replace `state.rng`, the root of all randomness.

    From there on the order of the data, dropout and all that is drawn are another's. To draw within
    a hook nothing need be replaced: `state.key("hook/<name>")`.

    >>> import jax
    >>> @rekeys
    ... def reseed(state, metrics):
    ...     return state.replace(rng=jax.random.key(7))
    >>> reseed.rekeys
    True
    """
    return dataclasses.replace(_one(hook, "rekeys"), rekeys=True)


def stateful(name: str, init: Callable[[TrainState], PyTree], update: Update) -> Hook:
    """Make a hook that remembers, in `state.hook_state[name]`, which is saved with the state.

    Args:
        name: unique among the hooks of a run; include the subject, `stop_early/val/loss`.
        init: `(state) -> memory`, a pytree of numbers, strings and arrays.
        update: `(memory, state, metrics) -> (memory, state)`, memory of the structure and types
            that `init` gave.

    >>> def count(memory, state, metrics):
    ...     return memory + 1, state
    >>> hook = stateful("count", lambda state: 0, count)
    >>> import jax
    >>> state = TrainState.create(params={}, rng=jax.random.key(0))
    >>> hook(hook(state, {}), {}).hook_state
    {'count': 2}
    """

    require_function(f"init of hook {name!r}", init, "(state) -> memory")
    form = "(memory, state, metrics) -> (memory, state)"
    require_function(f"update of hook {name!r}", update, form)

    def run(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        before = get_hook_state(state, name, init)
        result = update(before, state, metrics)
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(f"update of {name!r} must return (memory, state); got {result!r:.100}")
        memory, after = result
        if memory is before and name in state.hook_state:
            return after
        if not isinstance(after, TrainState):
            raise TypeError(f"update of {name!r} must return (memory, state); got {after!r:.100}")
        return set_hook_state(after, name, memory)

    return Hook(run, name, hook_states=(HookState(name, init),))


def get_hook_state(state: TrainState, name: str, init: Callable[[TrainState], PyTree]) -> PyTree:
    """Give what is remembered under a name, or the first memory where a test has none."""
    return state.hook_state[name] if name in state.hook_state else init(state)


def set_hook_state(state: TrainState, name: str, memory: PyTree) -> TrainState:
    """Give a state that remembers this under the name."""
    return state.replace(hook_state={**state.hook_state, name: memory})


def _require_names(who: str, keys: tuple[Any, ...]) -> None:
    wrong = next((key for key in keys if not isinstance(key, str)), None)
    if not keys or wrong is not None:
        raise TypeError(
            f"{who} takes the names of metrics one by one, @hooks.{who}('train/loss'); got "
            f"{describe_value(wrong) if keys else 'none'}"
        )


def _one(hook: Any, what: str) -> Hook:
    parts = flatten_hooks(hook)
    if len(parts) != 1:
        raise ValueError(f"{what} declares one hook; got a chain of {len(parts)}")
    return parts[0]
