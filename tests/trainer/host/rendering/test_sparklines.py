"""Summaries of a metric: extremes, and a small curve of any number of epochs."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.host.rendering.sparklines import BLOCKS, MAX_POINTS, MetricSummary, sparkline


def summarize(values):
    course = MetricSummary()
    for epoch, value in enumerate(values, 1):
        course.add(value, epoch)
    return course


@given(st.integers(1, 5000))
def test_a_long_run_has_few_evenly_spaced_points(length):
    found = summarize(float(n) for n in range(length))
    assert len(found.points) < MAX_POINTS
    assert len(found.points) * found.stride + len(found.waiting) == length
    assert found.points == [
        found.stride * at + (found.stride - 1) / 2 for at in range(len(found.points))
    ]


@given(st.lists(st.floats(), max_size=300), st.integers(1, 40))
def test_a_curve_fits_its_width_and_uses_its_full_height(values, width):
    curve = summarize(values).sparkline(width)
    assert len(curve) <= width
    assert set(curve) <= {" ", *BLOCKS}


def test_a_curve_shows_the_direction():
    assert summarize(range(100)).sparkline(8) == BLOCKS
    assert summarize(range(100, 0, -1)).sparkline(8) == BLOCKS[::-1]


@pytest.mark.parametrize("gap", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_leaves_a_gap(gap):
    assert sparkline([0.0, gap, 1.0], 10) == "▁ █"
    assert sparkline([gap], 10) == " "


def test_without_values_there_is_no_curve():
    assert MetricSummary().sparkline(10) == ""
