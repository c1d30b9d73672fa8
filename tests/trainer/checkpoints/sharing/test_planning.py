"""Plans of what is written and what is referred to, over many saves, without files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.checkpoints.arrays import host_snapshot, sharing
from trainer.checkpoints.arrays.leaves import Leaf, Piece, align

SIZES = [2**16 - 1, 2**16, 2**16 + 1, 2**17, 2**17 + 5]
"""Bytes of each array, the first of which is too small to refer to."""


def snapshot(values):
    """Return the leaves of arrays that are full of these values, with checksums, and the buffer."""
    leaves, end = [], 0
    for number, size in enumerate(SIZES):
        leaves.append(Leaf(f"w{number}", "uint8", (size,), 1, (Piece(end),)))
        end = align(end + size)
    buffer = np.zeros(end, np.uint8)
    for leaf, value in zip(leaves, values, strict=True):
        buffer[leaf.pieces[0].offset :][: leaf.count_bytes()] = value
    return {"": host_snapshot.add_checksums(leaves, buffer)}, buffer


NOWHERE = Path("nowhere")


class Disk:
    """Files in memory, by their names in the checkpoint that is being saved."""

    def __init__(self):
        self.files, self.shared = {}, {}

    def save(self, number, values, earlier, *, may_share=True):
        """Save a checkpoint; return its leaves and files, and what the next may refer to."""
        leaves, buffer = snapshot(values)
        before, self.files = self.files, {}
        own = f"process_0.{number - 1}.a-1"

        def share(name):
            if may_share:
                self.files[name] = before["" if name == own else name]
            return may_share

        plan = sharing.plan_pieces(leaves, earlier, f"steady_0.{number}.a-1", share)
        for name, ranges in plan.ranges.items():
            assert name not in self.files
            self.files[name] = np.concatenate([buffer[:0], *(buffer[a:b] for a, b in ranges)])
        assert {name: len(content) for name, content in self.files.items() if name} == plan.files
        rows = plan.leaves[""]
        for leaf, value in zip(rows, values, strict=True):
            (piece,) = leaf.pieces
            content = self.files[piece.file][piece.offset :][: leaf.count_bytes()]
            assert (content == value).all()
        sizes = {**plan.files, "": plan.count_own()}
        return plan, sharing.list_earlier_pieces(NOWHERE, 0, f"{number}.a-1", rows, sizes)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(*[st.booleans()] * len(SIZES), st.booleans()), min_size=1, max_size=6))
def test_every_save_has_every_value_and_no_file_is_more_than_half_unused(saves):
    disk, earlier, values = Disk(), sharing.EarlierPieces(), [0] * len(SIZES)
    for number, (*changes, may_share) in enumerate(saves, 1):
        values = [value + change for value, change in zip(values, changes, strict=True)]
        plan, earlier = disk.save(number, values, earlier, may_share=may_share)
        used = dict.fromkeys(plan.files, 0)
        for leaf in plan.leaves[""]:
            if leaf.pieces[0].file:
                used[leaf.pieces[0].file] += align(leaf.count_bytes())
        assert all(2 * used[name] >= size for name, size in plan.files.items())


def test_what_never_changes_is_written_once_where_it_is_most_of_a_file_and_else_twice():
    for frozen, times in ((range(1, 5), 1), (range(1, 2), 2)):
        disk, earlier, written = Disk(), sharing.EarlierPieces(), 0
        for number in range(1, 6):
            values = [0 if place in frozen else number for place in range(len(SIZES))]
            plan, earlier = disk.save(number, values, earlier)
            spans = [b - a for ranges in plan.ranges.values() for a, b in ranges]
            written += sum(spans)
        sizes = [align(size) for size in SIZES]
        changing = sum(size for place, size in enumerate(sizes) if place not in frozen)
        assert written == 5 * changing + times * sum(sizes[place] for place in frozen)


def test_where_nothing_changed_small_arrays_are_written_all_the_same():
    disk, values = Disk(), [3] * len(SIZES)
    _, earlier = disk.save(1, values, sharing.EarlierPieces())
    plan, _ = disk.save(2, values, earlier)
    assert [leaf.path for leaf in plan.leaves[""] if not leaf.pieces[0].file] == ["w0"]


def test_an_array_of_another_type_or_shape_is_another_one():
    leaf = Leaf("w", "uint8", (2**16,), 1, (Piece(0, checksum="0" * 16),))
    earlier = sharing.list_earlier_pieces(NOWHERE, 0, "1.a-1", [leaf], {"": 2**16})
    for other in (("w", "int8", (2**16,)), ("w", "uint8", (2**8, 2**8)), ("v", "uint8", (2**16,))):
        changed = {"": [Leaf(*other, 1, leaf.pieces)]}
        assert sharing.plan_pieces(changed, earlier, "", lambda name: True).files == {}
    same = sharing.plan_pieces({"": [leaf]}, earlier, "", lambda name: True)
    assert same.files == {"process_0.1.a-1": 2**16}
