"""A permutation computed in parts: one to one, reproducible, and as good as a random one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.iteration.permutation import permute_indices

SEEDS = st.integers(0, 2**32 - 1)


@given(st.integers(1, 3000), SEEDS, st.integers(0, 10**6))
def test_it_is_a_permutation(size, seed, number):
    order = permute_indices(np.arange(size), size, seed, number)
    assert order.dtype == np.int64
    np.testing.assert_array_equal(np.sort(order), np.arange(size))


@given(st.integers(1, 10**13), SEEDS, st.data())
def test_any_part_equals_that_of_the_whole_permutation(size, seed, data):
    drawn = data.draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=50))
    places = np.array(sorted(drawn))
    found = permute_indices(places, size, seed, 0)
    assert found.min() >= 0
    assert found.max() < size
    assert len(set(found.tolist())) == len(places)
    np.testing.assert_array_equal(permute_indices(places[::-1], size, seed, 0), found[::-1])
    square = np.stack([places, places])
    np.testing.assert_array_equal(permute_indices(square, size, seed, 0), [found, found])


def test_every_seed_and_every_pass_has_its_own_order():
    orders = {
        tuple(permute_indices(np.arange(50), 50, seed, number))
        for seed in range(20)
        for number in (0, 1)
    }
    assert len(orders) == 40


@pytest.mark.parametrize("size", [7, 100, 10**9])
def test_entries_are_uniform(size):
    """Counts in sevenths, of 700 passes, are within 5 standard deviations of 100 each."""
    for places in ([0], [size - 1], [size // 2]):
        found = np.array([permute_indices(np.array(places), size, 0, n)[0] for n in range(700)])
        counts = np.bincount(found * 7 // size, minlength=7)
        assert (abs(counts - 100) < 5 * np.sqrt(100 * 6 / 7)).all()


@pytest.mark.parametrize("apart", [1, 2, 31, 32, 33])
def test_neighbours_are_separated(apart):
    """Distances, in tenths of the size, of 20 passes: 2,000 each, within 5 standard deviations."""
    orders = np.array([permute_indices(np.arange(1000), 1000, 1, number) for number in range(20)])
    distances = (orders - np.roll(orders, apart, axis=1)) % 1000
    counts = np.bincount(distances.ravel() // 100, minlength=10)
    assert (abs(counts - 2000) < 5 * np.sqrt(2000 * 0.9)).all()
