"""A hook that draws lessons by what is learnt of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hooks.base import get_hook_state, stateful
from hooks.combining import Chain, chain
from trainer import Hook, TrainState
from trainer.rl.curriculum import check_weights
from trainer.state import PyTree
from trainer.supervised.hyperparams import fill_leaf


class LessonWeighting(NamedTuple):
    """How some lessons are weighed: pure functions on the host, over numpy arrays."""

    name: str
    """Of the memory, `adapt_curriculum/<name>`."""
    memory: PyTree
    """To begin with, a pytree of arrays."""
    update: Callable[[Any, np.ndarray], PyTree]
    """`(memory, returns) -> memory`: float64 `[lessons]`, nan where no episode ended."""
    weights: Callable[[Any], np.ndarray]
    """`(memory) -> [lessons]`: by which they are drawn; not negative, not all 0."""


CurriculumStrategy = Callable[[tuple[str, ...]], LessonWeighting]
"""`(names of the lessons) -> Weighing`: raises where they do not suit it."""


def adapt_curriculum(
    lessons: Sequence[str], strategy: CurriculumStrategy, *, metric: str = "rollout/return"
) -> Chain:
    """Draw the lessons of the next epoch by what their returns say of them.

    It sets `state.carry["lessons"]` at the `start` and after every epoch, by its memory alone, and
    scores the weights as `curriculum/weight/<lesson>`, of which the sum is 1. Of a lesson whose
    metric is missing, for no episode of it ended, nothing is learnt in this epoch. Episodes that
    have begun keep their lesson.

    Args:
        lessons: names, all and in order: `env.lessons` of `trainer.rl.lessons`.
        strategy: `learning_progress` or `thresholds`, or one of your own.
        metric: prefix of the returns; `val/return` where an `evaluate` before it plays them all.

    Raises:
        ValueError: names are missing or twice, or do not suit the strategy; before training, the
            state holds no weights of as many lessons, or nothing writes the metrics.

    Source: T. Matiisen, A. Oliver, T. Cohen, J. Schulman, Teacher-Student Curriculum Learning,
    2017.

    >>> import jax, jax.numpy as jnp
    >>> carry = {"lessons": jnp.array([0.5, 0.5])}
    >>> state = TrainState.create(params={}, rng=jax.random.key(0), carry=carry)
    >>> from hooks import thresholds
    >>> strategy = thresholds({"easy": 0.8}, window=1, rehearsal=1.0)
    >>> hook = adapt_curriculum(["easy", "hard"], strategy)
    >>> state = hook(state, {"rollout/return/easy": 0.5})
    >>> state.carry["lessons"].tolist()    # hard is not open yet
    [1.0, 0.0]
    >>> hook(state, {"rollout/return/easy": 0.9}).scores
    {'curriculum/weight/easy': 0.5, 'curriculum/weight/hard': 0.5}
    """
    names = (lessons,) if isinstance(lessons, str) else tuple(lessons)
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"adapt_curriculum needs the lessons' names, each once, as env.lessons has them; got "
            f"{list(names)}"
        )
    weighing = strategy(names)
    title = f"adapt_curriculum/{weighing.name}"

    def init(state: TrainState) -> PyTree:
        _check_carry(title, state, len(names))
        return weighing.memory

    def weighed(state: TrainState, memory: PyTree) -> TrainState:
        weights = np.asarray(weighing.weights(memory), np.float64)
        check_weights(names, weights)
        before = state.carry["lessons"]
        after = fill_leaf(before, weights / weights.sum())
        carry = state.carry if after is before else {**state.carry, "lessons": after}
        return state if carry is state.carry else state.replace(carry=carry)

    def begin(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        return weighed(state, get_hook_state(state, title, init))

    def update(
        memory: PyTree, state: TrainState, metrics: Mapping[str, float]
    ) -> tuple[PyTree, TrainState]:
        returns = np.array([metrics.get(f"{metric}/{name}", math.nan) for name in names])
        if np.isfinite(returns).any():
            memory = weighing.update(memory, np.where(np.isfinite(returns), returns, math.nan))
        state = weighed(state, memory)
        shown = np.asarray(state.carry["lessons"]).tolist()
        scores = {f"curriculum/weight/{name}": w for name, w in zip(names, shown, strict=True)}
        return memory, state.replace(scores={**state.scores, **scores})

    hook = stateful(title, init, update)
    return chain(
        Hook(begin, f"{title}/start", event="start"),
        Hook(
            hook.function,
            title,
            event="epoch",
            expects=tuple(f"{metric}/{name}" for name in names),
            writes=tuple(f"curriculum/weight/{name}" for name in names),
            hook_states=hook.hook_states,
        ),
    )


def _check_carry(title: str, state: TrainState, count: int) -> None:
    carry = state.carry if isinstance(state.carry, Mapping) else {}
    there = carry.get("lessons")
    if there is None or there.shape != (count,) or there.dtype != np.float32:
        got = "none" if there is None else f"{there.dtype}{list(there.shape)}"
        raise ValueError(
            f"hook {title!r} needs the weights of {count} lessons, state.carry['lessons'] "
            f"float32[{count}]; got {got}: train in an environment that trainer.rl.lessons made, "
            "and give the hook its env.lessons"
        )
