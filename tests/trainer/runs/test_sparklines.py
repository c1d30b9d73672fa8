"""How a metric went: extremes, and a small curve of any number of epochs."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.runs.sparklines import BLOCKS, KEPT, MetricSummary, sparkline


def course(values):
    course = MetricSummary()
    for epoch, value in enumerate(values, 1):
        course.add(value, epoch)
    return course


@given(st.integers(1, 5000))
def test_however_long_a_run_is_its_points_are_few_and_even(length):
    found = course(float(n) for n in range(length))
    assert len(found.points) < KEPT
    assert len(found.points) * found.stride + len(found.waiting) == length
    assert found.points == [
        found.stride * at + (found.stride - 1) / 2 for at in range(len(found.points))
    ]


@given(st.lists(st.floats(), max_size=300), st.integers(1, 40))
def test_a_curve_fits_and_reaches_from_bottom_to_top(values, width):
    curve = course(values).curve(width)
    assert len(curve) <= width
    assert set(curve) <= {" ", *BLOCKS}


def test_a_curve_shows_which_way_it_went():
    assert course(range(100)).curve(8) == BLOCKS
    assert course(range(100, 0, -1)).curve(8) == BLOCKS[::-1]


@pytest.mark.parametrize("gap", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_leaves_a_gap(gap):
    assert sparkline([0.0, gap, 1.0], 10) == "▁ █"
    assert sparkline([gap], 10) == " "


def test_without_values_there_is_no_curve():
    assert MetricSummary().curve(10) == ""
