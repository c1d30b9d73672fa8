"""Curves as SVG: within the picture, broken where nothing is finite, and escaped."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.host.rendering.panels import Curve
from trainer.host.rendering.svg_charts import (
    HEIGHT,
    POINTS,
    WIDTH,
    downsample,
    render_chart,
    suits_logarithm,
)

NUMBERS = st.floats() | st.floats(-1, 1) | st.just(1e308) | st.just(-1e308)


def drawn(*values, name="train", **axis):
    curve = Curve(list(range(1, len(values) + 1)), list(values))
    return ElementTree.fromstring(render_chart({name: curve}, {name: 0}, name, **axis))


@given(st.lists(NUMBERS, max_size=60), st.booleans())
def test_a_chart_of_any_numbers_stays_within_its_bounds(values, logarithmic):
    curve = Curve(list(range(len(values))), values)
    picture = drawn(*values, logarithmic=logarithmic and suits_logarithm({"train": curve}))
    places = [picture.find("path").get("d")]
    places += [f"{c.get('cx')} {c.get('cy')}" for c in picture.iter("circle")]
    for x, y in re.findall(r"(-?[\d.]+) (-?[\d.]+)", " ".join(places)):
        assert 0 <= float(x) <= WIDTH
        assert 0 <= float(y) <= HEIGHT


def test_higher_values_are_drawn_higher_and_later_ones_further_right():
    first, second, third = drawn(1.0, 3.0, 2.0).findall("circle")
    heights = [float(point.get("cy")) for point in (first, second, third)]
    assert heights[1] < heights[2] < heights[0]
    assert float(first.get("cx")) < float(second.get("cx")) < float(third.get("cx"))
    assert second.find("title").text == "train, epoch 2: 3.000"


def test_equal_ratios_are_equal_steps_of_a_logarithmic_axis():
    heights = [float(c.get("cy")) for c in drawn(1.0, 10.0, 100.0, logarithmic=True).iter("circle")]
    assert heights[0] - heights[1] == heights[1] - heights[2] == 87


def test_a_line_is_broken_at_non_finite_values():
    assert drawn(1.0, 2.0, math.nan, 2.0, 1.0).find("path").get("d").count("M") == 2


@pytest.mark.parametrize("name", ['"><script>', "</svg>", "a&b", "<!--"])
def test_names_stay_text(name):
    picture = drawn(1.0, name=name)
    assert picture.get("aria-label") == name
    assert picture.find("circle").find("title").text == f"{name}, epoch 1: 1.000"
    assert "<script" not in render_chart({name: Curve([1], [1.0])}, {name: 0}, name)


@given(st.integers(0, 2000))
def test_many_points_are_sampled_including_the_last(length):
    curve = downsample(Curve(list(range(length)), [float(n) for n in range(length)]))
    assert len(curve.values) == len(curve.epochs) <= POINTS
    assert curve.epochs[-1:] == list(range(length))[-1:]
