"""The hook: a function `(state, metrics) -> state` and what the loop needs to know of it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

from trainer.checks.arguments import describe_value, get_signature, require_function
from trainer.state import PyTree, TrainState

HookFunction = Callable[[TrainState, Mapping[str, float]], TrainState]
"""What a hook is. A plain one runs at `epoch`, in the `control` stage."""

FORM = "(state, metrics) -> state"
"""How a hook is called, for messages."""

STAGES = ("control", "observe", "save")
"""The order at one event. `control` may change all that keeps its structure; `observe` only its own
memory and scores for later observers; `save` saves what the others decided."""


class Interrupt(Exception):  # noqa: N818 - a request, not an error
    """Raised by a hook to end the run after this epoch's commit, so that the next run goes on.

    Neither `end` hooks run nor is `state.stop` touched.
    """


RunSettings = dict[str, dict[str, str]]
"""By subject (`root key`, `phase train`), the name of each setting and its value as text."""


class HookState(NamedTuple):
    """A place in `state.hook_state` and what is there at first."""

    name: str
    init: Callable[[TrainState], PyTree]


@dataclasses.dataclass(frozen=True, eq=False)
class Gate:
    """A condition under which a hook fires. It owns nothing: what it remembers is memory."""

    is_open: Callable[[TrainState, Mapping[str, float], str], bool]
    """`(state, metrics, event) -> bool`; asked once an event, however many hooks share it."""
    after_fire: Callable[[TrainState], TrainState] | None = None
    """Changes the gate's memory after the hook fired."""


class RestoredState(NamedTuple):
    """What a hook that restores found."""

    state: TrainState
    scores: dict[str, float]
    """The metrics of the event that was committed."""


@dataclasses.dataclass(frozen=True)
class Hook:
    """A function between the phases, and what the loop needs to know of it.

    Calling it runs the function if its reads are there and its gates say so; else it gives back
    the very same state.
    """

    function: HookFunction
    name: str
    """Includes its subject, `stop_early/val/loss`; unique among hooks with memory."""
    event: str | None = None
    """`start`, a phase's name, `epoch` (where None), `end` or `error`."""
    stage: str = "control"
    """One of `STAGES`. On several processes `observe` runs on the lead alone, the others on all."""
    reads: tuple[str, ...] = ()
    """Metrics without which it does not fire; checked before training."""
    expects: tuple[str, ...] = ()
    """Metrics that something must write, checked before training, but not at every event."""
    writes: tuple[str, ...] | Callable[[TrainState], tuple[str, ...]] = ()
    """Scores that it writes, or a function that names them once the state is known."""
    required_hook_states: tuple[str, ...] = ()
    """Memories, by name, that hooks before it must keep."""
    hook_states: tuple[HookState, ...] = ()
    gates: tuple[Gate, ...] = ()
    dry_run: HookFunction | None = None
    """Called in its place by `fit(..., check=True)`, where calling it leaves something behind; what
    it gives back is thrown away. Without one, a commit is left out of the check."""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Settings, plain values, that a resumed run compares with those before and tells where they
    differ. Those in the closures of the library's own control hooks are found without it."""
    describe: Callable[[RunSettings], None] | None = None
    """Told what the run is made of, before it restores; see `trainer.loop.run_description`."""
    restore: Callable[[TrainState], RestoredState | None] | None = None
    """Given a template, brings back an earlier run's state; called before all else."""
    read_history: Callable[[], Sequence[dict[str, float]]] | None = None
    """Gives what is on record of the epochs so far, one dict each with its number at `epoch`; asked
    where there is nothing left to train."""
    rekeys: bool = False
    """Whether it may replace `state.rng`, the root of all randomness; see `hooks.rekeys`."""
    check_background: Callable[[], None] | None = None
    """Raises what failed in the background since; asked at the beginning of every event."""
    flush: Callable[[], None] | None = None
    """Makes what was recorded durable; called before a commit."""
    close: Callable[[], None] | None = None
    """Releases threads and files; called in any case, in reverse order."""

    def __post_init__(self) -> None:
        if _makes_hooks(self.function):
            name = getattr(self.function, "__name__", "it")
            raise TypeError(
                f"hook {self.name!r} must be a function {FORM}; got "
                f"{describe_value(self.function)}, "
                f"which makes a hook: call it, {name}(...)"
            )
        require_function(f"hook {self.name!r}", self.function, FORM)
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

    @property
    def parts(self) -> tuple[Hook, ...]:
        """The hooks it is made of: itself."""
        return (self,)

    def __call__(self, state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        """Run it alone, as a test does."""
        return self.apply(state, metrics) if self.is_due(state, metrics, {}) else state

    def is_due(
        self, state: TrainState, metrics: Mapping[str, float], answers: MutableMapping[Gate, bool]
    ) -> bool:
        """Say whether it fires: its reads are there and all its gates are open.

        Args:
            state: to look at.
            metrics: what is known at this event.
            answers: of the gates that were asked at this event already; added to.
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
        """Run its function, and let its gates remember that it fired.

        Raises:
            TypeError: the function gave back something that is no state.
        """
        after = self.function(state, metrics)
        if not isinstance(after, TrainState):
            raise TypeError(
                f"hook {self.name!r} must return a TrainState, the one it was given if nothing "
                f"changes; got {describe_value(after)}{_forgotten(after)}"
            )
        for gate in self.gates:
            if gate.after_fire:
                after = gate.after_fire(after)
        return after


Hooks = Hook | HookFunction | Iterable[Any]
"""What is taken as hooks: one, a plain function, a chain, or several of these."""


def flatten_hooks(hooks: Any) -> tuple[Hook, ...]:
    """Flatten hooks, plain functions, chains and sequences of them to hooks.

    Raises:
        TypeError: something is neither.

    >>> def halve(state, metrics): return state
    >>> [part.name for part in flatten_hooks([halve, (halve,)])]
    ['halve', 'halve']
    """
    if hasattr(hooks, "parts") and not isinstance(hooks, type):
        return tuple(hooks.parts)
    if callable(hooks) and not isinstance(hooks, type):
        return (Hook(hooks, _name(hooks)),)
    if isinstance(hooks, Iterable) and not isinstance(hooks, str | Mapping | type):
        return tuple(part for hook in hooks for part in flatten_hooks(hook))
    raise TypeError(f"a hook is a function {FORM}; got {describe_value(hooks)}{_remedy(hooks)}")


def _remedy(thing: Any) -> str:
    """Say what to do with what is no hook, where that is known."""
    if all(callable(getattr(thing, name, None)) for name in ("write", "flush", "close")):
        made = f"{thing.__name__}(...)" if isinstance(thing, type) else "writer"
        return f": a writer is given to log_metrics({made})"
    if isinstance(thing, type):
        return f": make one of it, {thing.__name__}(...)"
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


def _forgotten(after: Any) -> str:
    if after is None:
        return ": end it with `return state`"
    if isinstance(after, tuple) and after and isinstance(after[0], TrainState):
        return ": return the state alone; what it remembers is for hooks.stateful"
    return ""


def _makes_hooks(function: Any) -> bool:
    """Say whether a function is one that gives hooks, by what it is annotated to return."""
    signature = None if isinstance(function, Hook) else get_signature(function)
    hint = None if signature is None else signature.return_annotation
    name = hint if isinstance(hint, str) else getattr(hint, "__name__", "")
    return name.rpartition(".")[2] in ("Hook", "Chain", "HookLike")


def _name(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)
