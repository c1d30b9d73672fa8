"""The hook: a function `(state, metrics) -> state` and what the loop needs to know about it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

from trainer.checks.arguments import describe_value, get_signature, require_function
from trainer.host.computed_once import ComputedOnce
from trainer.host.rendering.html_tables import render_table
from trainer.state import PyTree, TrainState

HookFunction = Callable[[TrainState, Mapping[str, float]], TrainState]
"""A plain function is a hook that runs at `epoch`, in stage `control`."""

FORM = "(state, metrics) -> state"
"""How a hook is called, for messages."""

STAGES = ("control", "observe", "save")
"""The order at one event. `control` may change the state but not its structure; `observe` only its
own hook state and scores for later observers; `save` saves the result."""


COLUMNS = ("event", "stage", "hook", "reads", "writes")
"""Heads of a table of hooks."""


class Interrupt(Exception):  # noqa: N818 - a request, not an error
    """Raised by a hook to end the run after this epoch is saved, so that the next run resumes.

    `end` hooks do not run and `state.stop` does not change.
    """


RunSettings = dict[str, dict[str, str]]
"""Subject (`root key`, `phase train`) to the name and value, as text, of each of its settings."""


class HookState(NamedTuple):
    """An entry of `state.hook_state` and its first value."""

    name: str
    init: Callable[[TrainState], PyTree]


@dataclasses.dataclass(frozen=True, eq=False)
class Gate:
    """A condition under which a hook fires. It holds no state: what it keeps is hook state."""

    is_open: Callable[[TrainState, Mapping[str, float], str], bool]
    """`(state, metrics, event) -> bool`; called once an event, even if several hooks share it."""
    after_fire: Callable[[TrainState], TrainState] | None = None
    """`(state) -> state`: updates the gate's hook state after the hook fired."""
    by_epoch: Callable[[int], bool] | None = None
    """`(number) -> bool`: what `is_open` returns at the event `epoch` of this number, counted from
    1, if the number alone decides it."""


class RestoredState(NamedTuple):
    """Result of a hook that restores an earlier run."""

    state: TrainState
    scores: dict[str, float]
    """Metrics of the event at which the state was saved."""


@dataclasses.dataclass(frozen=True)
class Hook:
    """A function between phases, and what the loop needs to know about it.

    Calling it runs the function if all metrics that it reads are there and its gates are open; else
    it returns the same state object.
    """

    function: HookFunction
    name: str
    """With the subject, `stop_early/val/loss`; unique among hooks that keep a hook state."""
    event: str | None = None
    """`start`, a phase's name, `epoch` (if None), `end` or `error`."""
    stage: str = "control"
    """One of `STAGES`. On several processes `observe` runs on the main process alone."""
    gather: tuple[str, ...] = ()
    """Paths in the state, such as `params`, of what an observer reads: before it runs, all
    processes gather the leaves below that are split over them."""
    reads: tuple[str, ...] = ()
    """Metrics that it needs to fire; checked before training."""
    expects: tuple[str, ...] = ()
    """Metrics that something must write; checked before training only."""
    writes: tuple[str, ...] | Callable[[TrainState], tuple[str, ...]] = ()
    """Scores that it writes, or a function that returns their names for a state."""
    required_hook_states: tuple[str, ...] = ()
    """Names of hook states that hooks before it must keep."""
    hook_states: tuple[HookState, ...] = ()
    gates: tuple[Gate, ...] = ()
    """Conditions under which it fires. On several processes the main one alone asks those of
    observers and saves, and tells the others which saves are due."""
    prepare: Callable[[TrainState], None] | None = None
    """`(state) -> None`: called before the event, with the state that the phases will leave, while
    the device still computes it; what it sends to the device is computed next. It is called unless
    hooks have changed arrays of the state in the epochs before."""
    prepare_waits: bool = False
    """Whether `prepare` may wait, such as for data of the host; then it is only called if the next
    epoch is dispatched before the hooks run, too."""
    dry_run: HookFunction | None = None
    """Called instead of the function during a dry run, `fit(..., dry_run=True)`, if the function
    leaves something behind; its result is discarded. A hook of stage `save` without one is left
    out of the dry run. `SKIP` does nothing."""
    lower: Callable[[TrainState], ComputedOnce[Any]] | None = None
    """`(state) -> ComputedOnce`: traces and lowers what the function runs on such a state, before
    the first epoch; it is then compiled beside the phases."""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Settings, plain values, that a resumed run compares with the saved ones; differences are
    logged. Settings in the closures of the library's own control hooks are found without it."""
    describe: Callable[[RunSettings], None] | None = None
    """`(settings) -> None`: called with the run's settings before it restores; see
    `trainer.loop.run_description`."""
    restore: Callable[[TrainState], RestoredState | None] | None = None
    """`(template) -> RestoredState`, or None: restores an earlier run; called before `start`."""
    read_history: Callable[[], Sequence[dict[str, float]]] | None = None
    """Returns the recorded metrics of earlier epochs, dicts with their number at `epoch`; called
    if there is nothing left to train."""
    rekeys: bool = False
    """Whether it may replace `state.rng`, the root of all randomness; see `hooks.rekeys`."""
    check_background: Callable[[], None] | None = None
    """Raises an error that occurred in the background; called at the beginning of every event, on
    several processes of every `epoch`."""
    flush: Callable[[], None] | None = None
    """Makes records durable; called before a checkpoint is saved."""
    close: Callable[[BaseException | None], None] | None = None
    """`(error) -> None`: releases threads and files. Always called, in reverse order, with the
    error that ended the run, or None."""

    def __post_init__(self) -> None:
        if _makes_hooks(self.function):
            name = getattr(self.function, "__name__", "it")
            raise TypeError(
                f"hook {self.name!r} must be a function {FORM}; got "
                f"{describe_value(self.function)}, which makes a hook: call it, {name}(...)"
            )
        require_function(f"hook {self.name!r}", self.function, FORM)
        if self.close is not None:
            require_function(f"close of hook {self.name!r}", self.close, "(error) -> None")
        if self.gather and self.stage != "observe":
            raise ValueError(
                f"hook {self.name!r} is of stage {self.stage!r}, and gather is for observers: this "
                "one runs on all processes, and calls trainer.gather itself"
            )
        if isinstance(self.reads, str) or isinstance(self.writes, str):
            raise TypeError(f"hook {self.name!r} reads and writes tuples of names; got a text")
        for key in self.reads:
            if not isinstance(key, str):
                raise TypeError(
                    f"hook {self.name!r} reads metrics by their names, such as 'val/loss'; got "
                    f"{describe_value(key)}"
                )

    @property
    def at(self) -> str:
        """The event at which it runs."""
        return self.event or "epoch"

    def describe_row(self) -> tuple[str, ...]:
        """Return its cells in a table of hooks, as `COLUMNS` names them."""
        written = "at start" if callable(self.writes) else ", ".join(self.writes)
        return self.at, self.stage, self.name, ", ".join(self.reads), written

    def _repr_html_(self) -> str:
        return render_table(COLUMNS, [self.describe_row()])

    @property
    def parts(self) -> tuple[Hook, ...]:
        """The hooks that it consists of: itself."""
        return (self,)

    def __call__(self, state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        """Run the hook alone, as in a test."""
        return self.apply(state, metrics) if self.is_due(state, metrics, {}) else state

    def is_due(
        self, state: TrainState, metrics: Mapping[str, float], answers: MutableMapping[Gate, bool]
    ) -> bool:
        """Return whether it fires: all metrics that it reads are there and its gates are open.

        `answers` are those of gates already called at this event; new ones are added.
        """
        for key in self.reads:
            if key not in metrics:
                return False
        for gate in self.gates:
            if gate not in answers:
                answers[gate] = bool(gate.is_open(state, metrics, self.at))
            if not answers[gate]:
                return False
        return True

    def apply(self, state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        """Run its function, and update the hook states of its gates.

        Raises:
            TypeError: the function did not return a state.
        """
        after = self.function(state, metrics)
        if not isinstance(after, TrainState):
            raise TypeError(
                f"hook {self.name!r} must return a TrainState, the one it was given if nothing "
                f"changes; got {describe_value(after)}{_suggest_return(after)}"
            )
        for gate in self.gates:
            if gate.after_fire:
                after = gate.after_fire(after)
        return after


def get_hook_state(state: TrainState, name: str, init: Callable[[TrainState], PyTree]) -> PyTree:
    """Return the hook state of this name, or the first one if the state has none, as in a test."""
    return state.hook_state[name] if name in state.hook_state else init(state)


def set_hook_state(state: TrainState, name: str, hook_state: PyTree) -> TrainState:
    """Return a state with this hook state under the name."""
    return state.replace(hook_state={**state.hook_state, name: hook_state})


def _skip(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
    """Return the state unchanged: `dry_run=SKIP` for a hook that leaves something behind."""
    return state


SKIP: HookFunction = _skip

Hooks = Hook | HookFunction | Iterable[Any]
"""Accepted as hooks: a hook, a plain function, a chain, or a sequence of these."""


def flatten_hooks(hooks: Any) -> tuple[Hook, ...]:
    """Flatten hooks, plain functions, chains and sequences of them to a tuple of hooks.

    Raises:
        TypeError: something is none of these.

    >>> def halve(state, metrics): return state
    >>> [part.name for part in flatten_hooks([halve, (halve,)])]
    ['halve', 'halve']
    """
    if hasattr(hooks, "parts") and not isinstance(hooks, type):
        return tuple(hooks.parts)
    if callable(hooks) and not isinstance(hooks, type):
        return (Hook(hooks, _get_function_name(hooks)),)
    if isinstance(hooks, Iterable) and not isinstance(hooks, str | Mapping | type):
        return tuple(part for hook in hooks for part in flatten_hooks(hook))
    raise TypeError(
        f"a hook is a function {FORM}; got {describe_value(hooks)}{_suggest_hook(hooks)}"
    )


def _suggest_hook(thing: Any) -> str:
    """Return how to make a hook of something that is none, if that is known."""
    if all(callable(getattr(thing, name, None)) for name in ("write", "flush", "close")):
        made = f"{thing.__name__}(...)" if isinstance(thing, type) else "writer"
        return f": a writer is given to log_metrics({made})"
    if isinstance(thing, type):
        return f": construct one, {thing.__name__}(...)"
    if isinstance(thing, TrainState):
        return ": that is what a hook returns; give the function itself, without calling it"
    if isinstance(thing, str):
        return f": hooks.from_config([{thing!r}]) makes hooks of their names"
    if isinstance(thing, Mapping):
        return ": give its hooks alone, chain(*hooks.values())"
    if thing is None:
        return ": leave it out, or give chain(), which does nothing"
    if hasattr(thing, "repeated_step"):
        return ": hooks.evaluate(phase) makes a hook of a phase of trainer.evaluation"
    return ""


def _suggest_return(after: Any) -> str:
    if after is None:
        return ": end it with `return state`"
    if isinstance(after, tuple) and after and isinstance(after[0], TrainState):
        return ": return the state alone; hooks.stateful makes a hook that keeps a hook state"
    return ""


def _makes_hooks(function: Any) -> bool:
    """Return whether a function makes hooks, by its annotated return type."""
    signature = None if isinstance(function, Hook) else get_signature(function)
    hint = None if signature is None else signature.return_annotation
    name = hint if isinstance(hint, str) else getattr(hint, "__name__", "")
    return name.rpartition(".")[2] in ("Hook", "Chain", "HookLike")


def _get_function_name(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)
