"""Strategies for `adapt_curriculum`: how the returns of lessons decide how often to draw them."""

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
    """Weigh lessons by how much their returns change, up or down.

    The change is the absolute difference between a fast and a slow average of a lesson's returns:
    lessons that are being learned or forgotten are drawn often, those that are mastered or still
    too hard are not. Returns of the lessons should be of one scale.

    Args:
        fast: weight of the newest return in the fast average; above `slow`.
        slow: weight of the newest return in the slow average.
        floor: share of the episodes drawn uniformly from all lessons, so that those without
            progress are tried again.

    Raises:
        ValueError: a setting is out of range, or `fast` is not above `slow`.

    Source: T. Matiisen, A. Oliver, T. Cohen, J. Schulman, Teacher-Student Curriculum Learning,
    2017; I. Kanitscheider et al., Multi-task Curriculum Learning in a Complex, Visual,
    Hard-exploration Domain: Minecraft, 2021.

    >>> weighting = learning_progress(fast=0.5, slow=0.25, floor=0.2)(("easy", "hard"))
    >>> averages = weighting.initial
    >>> for returns in ([1.0, 0.0], [1.0, 0.8]):
    ...     averages = weighting.update(averages, np.array(returns))
    >>> averages["fast"].tolist(), averages["slow"].tolist(), weighting.weights(averages).tolist()
    ([1.0, 0.4], [1.0, 0.2], [0.1, 0.9])
    """
    if not 0 < slow < fast <= 1:
        raise ValueError(f"averages need 0 < slow < fast <= 1; got slow={slow}, fast={fast}")
    if not 0 < floor <= 1:
        raise ValueError(f"floor must be in (0, 1], or a lesson may never come again; got {floor}")

    def update(averages: dict[str, np.ndarray], returns: np.ndarray) -> dict[str, np.ndarray]:
        def move(average: np.ndarray, rate: float) -> np.ndarray:
            known = np.where(np.isnan(average), returns, average)
            return np.where(np.isnan(returns), average, known + rate * (returns - known))

        return {"fast": move(averages["fast"], fast), "slow": move(averages["slow"], slow)}

    def weights(averages: dict[str, np.ndarray]) -> np.ndarray:
        progress = np.nan_to_num(np.abs(averages["fast"] - averages["slow"]))
        uniform, total = np.full(len(progress), 1 / len(progress)), progress.sum()
        return floor * uniform + (1 - floor) * (progress / total if total > 0 else uniform)

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
    """Open a lesson when its prerequisites have reached their thresholds.

    A lesson that has reached its threshold has graduated, permanently: it keeps a small weight, so
    that it is not forgotten, and lessons that depend on it may open. Other open lessons have weight
    1. Returns before a lesson opens do not count: make the environment with `lessons(env, ...,
    weights={"first": 1.0})`, so that there are none.

    Args:
        reached: lesson to the return at which it graduates, averaged over `window` epochs; lessons
            that are not named never graduate.
        prerequisites: lesson to those that it depends on; others are open from the start. None:
            each depends on the one before it.
        window: number of epochs with episodes of a lesson over which its return is averaged.
        graduated_weight: weight of a graduated lesson, in (0, 1], relative to an open one.

    Raises:
        ValueError: a setting is out of range; in `adapt_curriculum`, a lesson is unknown, lessons
            depend on one another in a circle, or one depends on a lesson without a threshold.

    >>> strategy = thresholds({"a": 0.5, "b": 0.5}, prerequisites={"c": ["a", "b"]}, window=2)
    >>> weighting = strategy(("a", "b", "c"))
    >>> progress = weighting.initial
    >>> for returns in ([0.4, 0.9, np.nan], [0.8, 0.9, np.nan]):
    ...     progress = weighting.update(progress, np.array(returns))
    ...     print(weighting.weights(progress).tolist())
    [1.0, 1.0, 0.0]
    [0.1, 0.1, 1.0]
    """
    if wrong := {name: value for name, value in reached.items() if not math.isfinite(value)}:
        raise ValueError(f"a threshold is a finite return; got {wrong}")
    if window < 1:
        raise ValueError(f"window must be at least 1 epoch; got {window}")
    if not 0 < graduated_weight <= 1:
        raise ValueError(f"graduated_weight must be in (0, 1]; got {graduated_weight}")

    def strategy(names: tuple[str, ...]) -> LessonWeighting:
        requires = _build_requirements(names, reached, prerequisites)
        targets = np.array([reached.get(name, math.inf) for name in names])

        def is_open(graduated: np.ndarray) -> np.ndarray:
            return ~(requires & ~graduated).any(axis=1)

        def update(progress: dict[str, np.ndarray], returns: np.ndarray) -> dict[str, np.ndarray]:
            recent, before = progress["returns"], progress["graduated"]
            counted = is_open(before) & ~np.isnan(returns)
            recent = np.where(counted, np.vstack([recent[1:], returns]), recent)
            means = recent.mean(axis=0)
            graduated = before | (means >= targets)
            for place in np.flatnonzero(graduated & ~before):
                opens = is_open(graduated) & ~is_open(before) & requires[:, place]
                log.info(
                    "lesson %s has graduated, at a return of %.6g over %d epochs%s",
                    names[place],
                    means[place],
                    window,
                    "".join(f"; {names[other]} opens" for other in np.flatnonzero(opens)),
                )
            return {"returns": recent, "graduated": graduated}

        def weights(progress: dict[str, np.ndarray]) -> np.ndarray:
            graduated = progress["graduated"]
            return np.where(graduated, graduated_weight, is_open(graduated).astype(np.float64))

        initial = {
            "returns": np.full((window, len(names)), np.nan),
            "graduated": np.zeros(len(names), bool),
        }
        return LessonWeighting("thresholds", initial, update, weights)

    return strategy


def _build_requirements(
    names: tuple[str, ...],
    reached: Mapping[str, float],
    prerequisites: Mapping[str, str | Sequence[str]] | None,
) -> np.ndarray:
    """Build bool `[lessons, lessons]`: whether the row's lesson depends on the column's."""
    if prerequisites is None:
        required = {name: [before] for before, name in itertools.pairwise(names)}
    else:
        required = {k: [v] if isinstance(v, str) else list(v) for k, v in prerequisites.items()}
    named = {*reached, *required, *itertools.chain.from_iterable(required.values())}
    if unknown := sorted(named - set(names)):
        raise ValueError(
            f"thresholds name {unknown}, which are no lessons{suggest_and_list(unknown[0], names)}"
        )
    for name, others in required.items():
        if endless := [other for other in others if other not in reached]:
            raise ValueError(
                f"lesson {name!r} depends on {endless}, which graduate at no threshold, so that it "
                "would never open: give them one"
            )
    try:
        graphlib.TopologicalSorter(required).prepare()
    except graphlib.CycleError as error:
        circle = " -> ".join(reversed(error.args[1]))
        raise ValueError(f"lessons depend on one another in a circle: {circle}") from None
    return np.array([[other in required.get(name, ()) for other in names] for name in names])
