"""Chains: several hooks that run in order, as one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from trainer import Metrics, TrainState
from trainer.hook import COLUMNS, Gate, Hook, HookFunction, flatten_hooks
from trainer.host.rendering.html_tables import render_table
from trainer.host.rendering.plain_tables import align_columns
from trainer.loop.events import sort_hooks

UNGATED_EVENTS = ("start", "end", "error")
"""Parts of a chain at these events run whatever its triggers (`every`, `when`, ...) say."""


@dataclasses.dataclass(frozen=True)
class Chain:
    """Hooks in order. `print` shows them as a table, in the order of execution."""

    parts: tuple[Hook, ...]

    def __call__(
        self, state: TrainState, metrics: Mapping[str, float], event: str = "epoch"
    ) -> TrainState:
        """Run the hooks of one event in order of execution, like `fit` but without its checks.

        Scores stay in the state, for tests.
        """
        answers: dict[Gate, bool] = {}
        for hook in sort_hooks(self.parts, event):
            if hook.is_due(state, metrics, answers):
                after = hook.apply(state, metrics)
                if after.scores is not state.scores:
                    metrics = _add_scores(metrics, after.scores)
                state = after
        return state

    def __str__(self) -> str:
        rows = [part.describe_row() for part in sort_parts(self.parts)]
        return align_columns([COLUMNS, *rows])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return render_table(COLUMNS, [part.describe_row() for part in sort_parts(self.parts)])


HookLike = Chain | Hook | HookFunction
"""What combinators accept and return."""


def chain(*hooks: Any) -> Chain:
    """Run hooks in order. `chain()` does nothing; nested chains are flattened.

    The order holds within a stage: control hooks run first, then observers, then saves.

    >>> def scale(factor):
    ...     def scale(state, metrics):
    ...         return state.replace(params=state.params * factor)
    ...     return scale
    >>> import jax
    >>> state = TrainState.create(params=1.0, rng=jax.random.key(0))
    >>> chain(scale(0.5), chain(scale(4.0)))(state, {}).params
    2.0
    """
    return Chain(flatten_hooks(hooks))


def sort_parts(parts: tuple[Hook, ...]) -> list[Hook]:
    """Sort hooks in the order of execution."""
    named = [part.at for part in parts]
    phases = [at for at in dict.fromkeys(named) if at not in ("start", "epoch", "end", "error")]
    events = ("start", *phases, "epoch", "end", "error")
    return [part for event in events for part in sort_hooks(parts, event)]


def join_parts(parts: list[Hook]) -> HookLike:
    """Return a single hook unchanged, several as a chain."""
    return parts[0] if len(parts) == 1 else Chain(tuple(parts))


def _add_scores(metrics: Mapping[str, float], scores: Mapping[str, float]) -> Mapping[str, float]:
    return (metrics if isinstance(metrics, Metrics) else Metrics(metrics)).with_scores(scores)
