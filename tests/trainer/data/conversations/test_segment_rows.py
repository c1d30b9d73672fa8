"""Rows hold each text as it is, in a segment of its own."""

import chex
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.conversations.row_packing import pack_rows
from trainer.data.conversations.segment_rows import place_segments
from trainer.data.conversations.token_encoding import EncodedText

LENGTH = 9


def make_texts(sizes):
    random = np.random.default_rng(len(sizes))
    return [
        EncodedText(random.integers(1, 50, n).astype(np.int32), random.random(n) < 0.5)
        for n in sizes
    ]


@given(st.lists(st.integers(2, LENGTH + 1), min_size=1, max_size=12))
def test_each_text_is_found_in_its_segment_and_nowhere_else(sizes):
    texts = make_texts(sizes)
    rows = pack_rows([n - 1 for n in sizes], LENGTH)
    packed = place_segments(texts, rows, LENGTH)
    batch = packed.read(np.arange(len(packed)))
    inputs = batch["inputs"]
    chex.assert_shape([*inputs.values(), batch["labels"], batch["mask"]], (len(rows), LENGTH))
    chex.assert_type([*inputs.values(), batch["labels"], batch["mask"]], [np.int32] * 4 + [bool])
    for row, numbers in enumerate(rows):
        for segment, number in enumerate(numbers, 1):
            here = inputs["segments"][row] == segment
            text = texts[number]
            np.testing.assert_array_equal(inputs["tokens"][row][here], text.tokens[:-1])
            np.testing.assert_array_equal(batch["labels"][row][here], text.tokens[1:])
            np.testing.assert_array_equal(batch["mask"][row][here], text.trained[1:])
            np.testing.assert_array_equal(inputs["positions"][row][here], np.arange(here.sum()))
            assert np.flatnonzero(here).tolist() == [*range(*_ends(here))]
    padding = inputs["segments"] == 0
    for array in (inputs["tokens"], inputs["positions"], batch["labels"], batch["mask"]):
        assert not array[padding].any()
    assert (~padding).sum() == sum(sizes) - len(sizes)


def _ends(here):
    return np.flatnonzero(here)[0], np.flatnonzero(here)[-1] + 1


def test_rows_are_read_in_any_order_and_shape():
    texts = make_texts([3, 4, 5, 6])
    rows = place_segments(texts, [[0, 1], [2], [3]], LENGTH)
    every = rows.read(np.arange(3))
    some = rows.read(np.array([[2, 0], [0, 1]]))
    for name in ("labels", "mask"):
        np.testing.assert_array_equal(some[name], every[name][[[2, 0], [0, 1]]])
    tokens = every["inputs"]["tokens"]
    np.testing.assert_array_equal(some["inputs"]["tokens"], tokens[[[2, 0], [0, 1]]])


def test_segments_may_begin_at_multiples():
    rows = place_segments(make_texts([3, 4]), [[0, 1]], 10, width=5)
    segments = rows.read(np.array([0]))["inputs"]["segments"]
    assert segments.tolist() == [[1, 1, 0, 0, 0, 2, 2, 2, 0, 0]]


def test_the_largest_token_is_found_with_its_row():
    texts = make_texts([3, 4, 5])
    texts[1].tokens[3] = 99  # a label only
    rows = place_segments(texts, [[0, 2], [1]], LENGTH)
    assert rows.find_largest_token() == (99, 1)
    assert 99 in rows.read(np.array([1]))["labels"]


def test_what_describes_rows_depends_on_all_that_they_hold():
    texts = make_texts([3, 4])
    found = {place_segments(texts, [[0, 1]], LENGTH).describe()}
    found.add(place_segments(texts, [[0], [1]], LENGTH).describe())
    found.add(place_segments(texts, [[0, 1]], LENGTH + 1).describe())
    for part in ("tokens", "trained"):
        changed = make_texts([3, 4])
        getattr(changed[1], part)[2] ^= 1
        found.add(place_segments(changed, [[0, 1]], LENGTH).describe())
    assert len(found) == 5
    assert place_segments(make_texts([3, 4]), [[0, 1]], LENGTH).describe() in found
