"""Rows hold every segment once, and are fuller than a simple bound."""

from hypothesis import given
from hypothesis import strategies as st

from trainer.data.conversations.row_packing import pack_rows


@given(
    st.integers(1, 40).flatmap(
        lambda room: st.tuples(st.lists(st.integers(0, room), max_size=60), st.just(room))
    )
)
def test_every_segment_is_in_one_row_that_has_room(drawn):
    lengths, room = drawn
    rows = pack_rows(lengths, room)
    assert sorted(n for row in rows for n in row) == list(range(len(lengths)))
    filled = [sum(lengths[n] for n in row) for row in rows]
    assert all(row == sorted(row) and row for row in rows)
    assert max(filled, default=0) <= room
    assert rows == sorted(rows) == pack_rows(lengths, room)
    # No two rows fit into one: the second would not have been begun.
    assert all(a + b > room for i, a in enumerate(filled) for b in filled[:i] if a and b)


def test_by_hand():
    assert pack_rows([7, 4, 5, 3, 1], 10) == [[0, 3], [1, 2, 4]]
    assert pack_rows([], 4) == []
    assert pack_rows([4, 4], 4) == [[0], [1]]
