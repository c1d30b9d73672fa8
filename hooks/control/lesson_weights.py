"""Strategies for `adapt_curriculum`: what the returns of lessons say of how often to draw them."""

from __future__ import annotations

import graphlib
import itertools
import logging
import math
from collections.abc import Mapping, Sequence

import numpy as np

from hooks.control.adapting_curriculum import CurriculumStrategy, LessonWeighting
from trainer.checks.suggestions import suggest_and_list

log = logging.getLogger("entracte")


def learning_progress(
    *, fast: float = 0.3, slow: float = 0.05, floor: float = 0.1
) -> CurriculumStrategy:
    """Weigh lessons by how much their returns change, for better or for worse.

    The change is the difference between a fast and a slow average of a lesson's returns, without
    its sign: what is learnt is practised, and so is what is being forgotten; what is mastered or
    still too hard is not. Returns of the lessons should be of one scale.

    Args:
        fast: share of the newest return in the fast average; above `slow`.
        slow: the same of the slow one.
        floor: share of the episodes that is drawn from all lessons alike, so that those with no
            progress are tried again; all of them while there is none.

    Raises:
        ValueError: a setting is out of range, or the averages are out of order.

    Source: T. Matiisen, A. Oliver, T. Cohen, J. Schulman, Teacher-Student Curriculum Learning,
    2017; I. Kanitscheider et al., Multi-task Curriculum Learning in a Complex, Visual,
    Hard-exploration Domain: Minecraft, 2021.

    >>> weighing = learning_progress(fast=0.5, slow=0.25, floor=0.2)(("easy", "hard"))
    >>> memory = weighing.memory
    >>> for returns in ([1.0, 0.0], [1.0, 0.8]):
    ...     memory = weighing.update(memory, np.array(returns))
    >>> memory["fast"].tolist(), memory["slow"].tolist(), weighing.weights(memory).tolist()
    ([1.0, 0.4], [1.0, 0.2], [0.1, 0.9])
    """
    if not 0 < slow < fast <= 1:
        raise ValueError(f"averages need 0 < slow < fast <= 1; got slow={slow}, fast={fast}")
    if not 0 < floor <= 1:
        raise ValueError(f"floor must be in (0, 1], or a lesson may never come again; got {floor}")

    def update(memory: dict[str, np.ndarray], returns: np.ndarray) -> dict[str, np.ndarray]:
        def moved(average: np.ndarray, rate: float) -> np.ndarray:
            begun = np.where(np.isnan(average), returns, average)
            return np.where(np.isnan(returns), average, begun + rate * (returns - begun))

        return {"fast": moved(memory["fast"], fast), "slow": moved(memory["slow"], slow)}

    def weights(memory: dict[str, np.ndarray]) -> np.ndarray:
        progress = np.nan_to_num(np.abs(memory["fast"] - memory["slow"]))
        alike, total = np.full(len(progress), 1 / len(progress)), progress.sum()
        return floor * alike + (1 - floor) * (progress / total if total > 0 else alike)

    def strategy(names: tuple[str, ...]) -> LessonWeighting:
        unknown = {name: np.full(len(names), np.nan) for name in ("fast", "slow")}
        return LessonWeighting("learning_progress", unknown, update, weights)

    return strategy


def thresholds(
    reached: Mapping[str, float],
    *,
    prerequisites: Mapping[str, str | Sequence[str]] | None = None,
    window: int = 5,
    graduated_weight: float = 0.1,
) -> CurriculumStrategy:
    """Open a lesson when those it depends on have reached their thresholds.

    A lesson that has reached its own has graduated, for good: it keeps a small weight, so that it
    is not forgotten, and lessons that depend on it may open. Those that are open and have not
    graduated are drawn alike. What a lesson's episodes give before it opens is not counted: begin
    with `lessons(env, ..., weights={"first": 1.0})`, so that there are none.

    Args:
        reached: lesson to the return at which it graduates, on an average of `window` epochs; one
            that is not named never does.
        prerequisites: lesson to those that it depends on; those that are not named are open from
            the start. None: each depends on the one before it, in the order of the lessons.
        window: epochs with episodes of the lesson over which its return is averaged.
        graduated_weight: weight of a graduated lesson, in (0, 1], where one that is practised has
            1.

    Raises:
        ValueError: a setting is out of range; `adapt_curriculum` finds an unknown lesson,
            dependencies in a circle, or one on a lesson that has no threshold.

    >>> strategy = thresholds({"a": 0.5, "b": 0.5}, after={"c": ["a", "b"]}, window=2)
    >>> weighing = strategy(("a", "b", "c"))
    >>> memory = weighing.memory
    >>> for returns in ([0.4, 0.9, np.nan], [0.8, 0.9, np.nan]):
    ...     memory = weighing.update(memory, np.array(returns))
    ...     print(weighing.weights(memory).tolist())
    [1.0, 1.0, 0.0]
    [0.1, 0.1, 1.0]
    """
    if wrong := {name: value for name, value in reached.items() if not math.isfinite(value)}:
        raise ValueError(f"a threshold is a finite return; got {wrong}")
    if window < 1:
        raise ValueError(f"window must be at least 1 epoch; got {window}")
    if not 0 < graduated_weight <= 1:
        raise ValueError(f"rehearsal must be in (0, 1]; got {graduated_weight}")

    def strategy(names: tuple[str, ...]) -> LessonWeighting:
        needs = _needs(names, reached, prerequisites)
        wanted = np.array([reached.get(name, math.inf) for name in names])

        def opened(graduated: np.ndarray) -> np.ndarray:
            return ~(needs & ~graduated).any(axis=1)

        def update(memory: dict[str, np.ndarray], returns: np.ndarray) -> dict[str, np.ndarray]:
            recent, before = memory["returns"], memory["graduated"]
            new = opened(before) & ~np.isnan(returns)
            recent = np.where(new, np.vstack([recent[1:], returns]), recent)
            means = recent.mean(axis=0)
            graduated = before | (means >= wanted)
            for place in np.flatnonzero(graduated & ~before):
                opens = opened(graduated) & ~opened(before) & needs[:, place]
                log.info(
                    "lesson %s has graduated, at a return of %.6g over %d epochs%s",
                    names[place],
                    means[place],
                    window,
                    "".join(f"; {names[other]} opens" for other in np.flatnonzero(opens)),
                )
            return {"returns": recent, "graduated": graduated}

        def weights(memory: dict[str, np.ndarray]) -> np.ndarray:
            graduated = memory["graduated"]
            return np.where(graduated, graduated_weight, opened(graduated).astype(np.float64))

        first = {
            "returns": np.full((window, len(names)), np.nan),
            "graduated": np.zeros(len(names), bool),
        }
        return LessonWeighting("thresholds", first, update, weights)

    return strategy


def _needs(
    names: tuple[str, ...],
    reached: Mapping[str, float],
    after: Mapping[str, str | Sequence[str]] | None,
) -> np.ndarray:
    """Give bool `[lessons, lessons]`: the row's lesson depends on the column's."""
    if after is None:
        needed = {name: [before] for before, name in itertools.pairwise(names)}
    else:
        needed = {k: [v] if isinstance(v, str) else list(v) for k, v in after.items()}
    named = {*reached, *needed, *itertools.chain.from_iterable(needed.values())}
    if unknown := sorted(named - set(names)):
        raise ValueError(
            f"thresholds name {unknown}, which are no lessons{suggest_and_list(unknown[0], names)}"
        )
    for name, others in needed.items():
        if endless := [other for other in others if other not in reached]:
            raise ValueError(
                f"lesson {name!r} depends on {endless}, which graduate at no threshold, so that it "
                "would never open: give them one"
            )
    try:
        graphlib.TopologicalSorter(needed).prepare()
    except graphlib.CycleError as error:
        circle = " -> ".join(reversed(error.args[1]))
        raise ValueError(f"lessons depend on one another in a circle: {circle}") from None
    return np.array([[other in needed.get(name, ()) for other in names] for name in names])
