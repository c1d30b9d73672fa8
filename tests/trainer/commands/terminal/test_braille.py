"""Curves in a terminal: within their size, broken at non-finite values, with any names."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.commands.terminal.braille import LEFT, plot
from trainer.host.rendering.panels import Curve

NUMBERS = st.floats() | st.floats(-1, 1) | st.just(1e308) | st.just(-1e308)


def drawn(*values, width=30, height=4, name="val"):
    curve = Curve(list(range(1, len(values) + 1)), list(values))
    return plot("loss", {name: curve}, width=width, height=height).plain.split("\n")


def dots(lines):
    return sum((ord(c) - 0x2800).bit_count() for line in lines for c in line if c > "\u2800")


@given(st.lists(NUMBERS, max_size=200), st.integers(LEFT + 8, 60), st.integers(1, 9))
def test_a_plot_of_any_numbers_has_the_requested_size(values, width, height):
    lines = drawn(*values, width=width, height=height)
    assert len(lines) == height + 2
    assert all(len(line) <= width for line in lines[1:])
    assert (dots(lines) > 0) == any(map(math.isfinite, values))


def test_higher_values_are_drawn_higher_and_later_ones_further_right():
    rising, falling = drawn(1.0, 2.0, 3.0), drawn(3.0, 2.0, 1.0)
    ends = [[at for at, c in enumerate(lines[1]) if c > "\u2800"] for lines in (rising, falling)]
    assert min(ends[0]) > max(ends[1])
    assert all(dots([line]) for line in rising[1:-1])


def test_a_line_is_broken_at_non_finite_values():
    whole, broken = drawn(1.0, 1.0, 1.0, 1.0), drawn(1.0, math.nan, 1.0, 1.0)
    assert dots(broken) < dots(whole)


def test_many_points_are_averaged():
    alternating = [float(n % 2) for n in range(10_000)]
    assert dots(drawn(*alternating, 0.5)) <= 4 * 42


@pytest.mark.parametrize("name", ["[bold]", "\x1b[2J", "a" * 500])
def test_names_stay_text_and_within_the_width(name):
    heading = drawn(1.0, name=name)[0]
    assert len(heading) <= 30
    assert "\x1b" not in heading
