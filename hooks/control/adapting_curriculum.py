"""A hook that draws lessons by what their returns tell."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hooks.base import stateful
from hooks.combining import Chain
from trainer import TrainState
from trainer.rl.curriculum import check_weights
from trainer.state import PyTree
from trainer.supervised.hyperparams import fill_leaf


class LessonWeighting(NamedTuple):
    """How lessons are weighed: pure functions on the host, over numpy arrays."""

    name: str
    """Of the hook and its hook state, `adapt_curriculum/<name>`."""
    initial: PyTree
    """The first hook state, a pytree of arrays."""
    update: Callable[[Any, np.ndarray], PyTree]
    """`(hook state, returns) -> hook state`: float64 `[lessons]`, nan where no episode ended."""
    weights: Callable[[Any], np.ndarray]
    """`(hook state) -> [lessons]`: weights to draw by; not negative, not all 0."""


CurriculumStrategy = Callable[[tuple[str, ...]], LessonWeighting]
"""`(names of the lessons) -> LessonWeighting`: raises if the names do not fit."""


def adapt_curriculum(
    lessons: Sequence[str], strategy: CurriculumStrategy, *, metric: str = "rollout/return"
) -> Chain:
    """Set how often each lesson is drawn in the next epoch, from the returns of the lessons.

    It sets `state.carry["lessons"]` at `start` and after every epoch, and writes the weights as
    scores `curriculum/weight/<lesson>`, which sum to 1. A lesson without a metric, because none of
    its episodes ended, is not updated. Episodes that are being played keep their lesson.

    Args:
        lessons: names of all lessons, in order: `env.lessons` of `trainer.rl.lessons`, or those of
            the prompts of `trainer.rl.grpo`.
        strategy: `learning_progress`, `thresholds`, or your own.
        metric: prefix of the returns; `val/return` if an `evaluate` before it plays all lessons;
            `sample/reward` for `trainer.rl.grpo`.

    Raises:
        ValueError: there are no names, one is given twice, or they do not fit the strategy; before
            training, the state has no weights of as many lessons, or nothing writes the metrics.

    Source: T. Matiisen, A. Oliver, T. Cohen, J. Schulman, Teacher-Student Curriculum Learning,
    2017.

    >>> import jax, jax.numpy as jnp
    >>> carry = {"lessons": jnp.array([0.5, 0.5])}
    >>> state = TrainState.create(params={}, rng=jax.random.key(0), carry=carry)
    >>> from hooks import thresholds
    >>> strategy = thresholds({"easy": 0.8}, window=1, graduated_weight=1.0)
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
    weighting = strategy(names)
    title = f"adapt_curriculum/{weighting.name}"
    reads = tuple(f"{metric}/{name}" for name in names)
    writes = tuple(f"curriculum/weight/{name}" for name in names)

    def init(state: TrainState) -> PyTree:
        carry = state.carry if isinstance(state.carry, Mapping) else {}
        there, count = carry.get("lessons"), len(names)
        if there is None or there.shape != (count,) or there.dtype != np.float32:
            got = "none" if there is None else f"{there.dtype}{list(there.shape)}"
            raise ValueError(
                f"hook {title!r} needs the weights of {count} lessons, state.carry['lessons'] "
                f"float32[{count}]; got {got}: train in an environment that trainer.rl.lessons "
                "made, or on prompts by lesson, and give the hook the names of these lessons"
            )
        return weighting.initial

    def set_weights(state: TrainState, learned: PyTree) -> TrainState:
        weights = np.asarray(weighting.weights(learned), np.float64)
        check_weights(names, weights)
        before = state.carry["lessons"]
        after = fill_leaf(before, weights / weights.sum())
        return state if after is before else state.replace(carry={**state.carry, "lessons": after})

    def start(
        learned: PyTree, state: TrainState, metrics: Mapping[str, float]
    ) -> tuple[PyTree, TrainState]:
        return learned, set_weights(state, learned)

    def update(
        learned: PyTree, state: TrainState, metrics: Mapping[str, float]
    ) -> tuple[PyTree, TrainState]:
        returns = np.array([metrics.get(name, math.nan) for name in reads])
        if np.isfinite(returns).any():
            learned = weighting.update(learned, np.where(np.isfinite(returns), returns, math.nan))
        state = set_weights(state, learned)
        weights = np.asarray(state.carry["lessons"]).tolist()
        scores = dict(zip(writes, weights, strict=True))
        return learned, state.replace(scores={**state.scores, **scores})

    return stateful(title, init, update, start=start, event="epoch", expects=reads, writes=writes)
