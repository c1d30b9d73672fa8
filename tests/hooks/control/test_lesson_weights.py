"""Weights of lessons, worked out by hand."""

import numpy as np
import pytest

import hooks

NO = np.nan
"""No episode of the lesson ended."""


def compute_weights(strategy, names, rows):
    """Return the weights before and after each row of returns."""
    weighting = strategy(tuple(names))
    learned = weighting.initial
    weights = [weighting.weights(learned).tolist()]
    for row in rows:
        learned = weighting.update(learned, np.array(row, float))
        weights.append(weighting.weights(learned).tolist())
    return weights


# learning_progress


def test_lessons_without_progress_have_equal_weights():
    strategy = hooks.learning_progress()
    rows = [[NO, NO], [3, NO], [3, 9], [3, 9]]
    assert compute_weights(strategy, "ab", rows) == [[0.5, 0.5]] * 5


def test_progress_is_the_difference_of_a_fast_and_a_slow_average():
    strategy = hooks.learning_progress(fast=0.5, slow=0.25, floor=0.5)
    # a: 0, then 4: 2 and 1, a progress of 1; then 0: 1 and 0.75, of 0.25.
    # b: 2, then -2: 0 and 1, a progress of 1, downwards; then no episode.
    weights = compute_weights(strategy, "ab", [[0, 2], [4, -2], [0, NO]])
    assert weights[1:3] == [[0.5, 0.5], [0.5, 0.5]]
    assert weights[3] == [0.25 + 0.5 * 0.2, 0.25 + 0.5 * 0.8]


def test_a_lesson_that_was_never_played_has_the_floor():
    strategy = hooks.learning_progress(fast=1.0, slow=0.5, floor=0.3)
    after = compute_weights(strategy, "abc", [[0, 0, NO], [1, 0, NO]])[-1]
    np.testing.assert_allclose(after, [0.8, 0.1, 0.1])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"fast": 0.1, "slow": 0.2}, "0 < slow < fast <= 1"),
        ({"fast": 0.1, "slow": 0.1}, "0 < slow < fast <= 1"),
        ({"slow": 0.0}, "0 < slow < fast <= 1"),
        ({"fast": 1.5}, "0 < slow < fast <= 1"),
        ({"floor": 0.0}, r"floor must be in \(0, 1\]"),
        ({"floor": 1.1}, r"floor must be in \(0, 1\]"),
    ],
)
def test_bad_settings_of_learning_progress_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        hooks.learning_progress(**settings)


# thresholds


def test_lessons_open_one_after_the_other():
    strategy = hooks.thresholds({"a": 1, "b": 2}, window=1, graduated_weight=0.25)
    rows = [[0.9, NO, NO], [1, NO, NO], [0, 1.9, NO], [0, 2, NO], [0, 0, 9]]
    open_b, open_c = [0.25, 1, 0], [0.25, 0.25, 1]
    assert compute_weights(strategy, "abc", rows) == [[1, 0, 0]] * 2 + [open_b] * 2 + [open_c] * 2


def test_a_threshold_is_reached_on_the_mean_of_a_full_window():
    strategy = hooks.thresholds({"a": 1}, window=3)
    rows = [[5, NO], [5, NO], [NO, NO], [-9, NO], [3, NO], [9, NO]]  # means 1/3, -1/3, 1
    weights = compute_weights(strategy, "ab", rows)
    assert weights[:-1] == [[1, 0]] * 6
    assert weights[-1] == [0.1, 1]


def test_a_lesson_opens_when_all_prerequisites_have_graduated():
    strategy = hooks.thresholds(
        {"a": 1, "b": 1}, prerequisites={"c": ["a", "b"]}, window=1, graduated_weight=0.5
    )
    assert compute_weights(strategy, "cab", [[NO, 1, 0], [NO, 0, 1]]) == [
        [0, 1, 1],
        [0, 0.5, 1],
        [1, 0.5, 0.5],
    ]


def test_returns_before_a_lesson_opens_do_not_count():
    strategy = hooks.thresholds({"a": 1, "b": 1}, window=1, graduated_weight=0.5)
    weights = compute_weights(strategy, "ab", [[0, 9], [1, 9], [0, 0], [0, 1]])
    assert weights[1:] == [[1, 0], [0.5, 1], [0.5, 1], [0.5, 0.5]]


def test_all_graduated_lessons_have_equal_weights():
    strategy = hooks.thresholds({"a": 1, "b": 1}, prerequisites={}, window=1)
    assert compute_weights(strategy, "ab", [[1, 1]]) == [[1, 1], [0.1, 0.1]]


def test_a_single_prerequisite_may_be_a_string(caplog):
    caplog.set_level("INFO", "entracte")
    strategy = hooks.thresholds({"easy": 0.5}, prerequisites={"hard": "easy"}, window=2)
    assert compute_weights(strategy, ["easy", "hard"], [[0.5, NO]] * 2)[-1] == [0.1, 1]
    assert caplog.messages == [
        "lesson easy has graduated, at a return of 0.5 over 2 epochs; hard opens"
    ]


@pytest.mark.parametrize(
    ("reached", "settings", "said"),
    [
        ({"a": np.nan}, {}, "a finite return; got {'a': nan}"),
        ({"a": 1}, {"window": 0}, "window must be at least 1"),
        ({"a": 1}, {"graduated_weight": 0}, r"graduated_weight must be in \(0, 1\]"),
        ({"a": 1, "b": 1, "x": 1}, {}, r"name \['x'\], which are no lessons .there is: a, b, c"),
        ({"a": 1, "b": 1}, {"prerequisites": {"x": "a"}}, r"name \['x'\]"),
        ({"a": 1, "b": 1}, {"prerequisites": {"b": ["x", "y"]}}, r"name \['x', 'y'\]"),
        ({"a": 1}, {}, r"lesson 'c' depends on \['b'\], which graduate at no threshold"),
        (
            {"a": 1, "b": 1},
            {"prerequisites": {"a": "b", "b": "a"}},
            "in a circle: (a -> b -> a|b -> a -> b)",
        ),
        ({"a": 1}, {"prerequisites": {"a": "a"}}, "in a circle: a -> a"),
    ],
)
def test_thresholds_that_do_not_fit_are_refused(reached, settings, said):
    with pytest.raises(ValueError, match=said):
        hooks.thresholds(reached, **settings)(("a", "b", "c"))
