"""Accepted lines stay in a queue until they are delivered, whatever happens to its process."""

import errno
import json
import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.runs import disk_queue
from trainer.runs.disk_queue import DiskQueue, QueueClosed


@pytest.fixture
def opened(tmp_path):
    """Return a function that opens the queue, as another process would after this one."""
    made = []

    def opening(**settings):
        made.append(DiskQueue(tmp_path / "queue.jsonl", **settings))
        return made[-1]

    yield opening
    for one in made:
        try:
            one.close()
        except QueueClosed:
            continue


def read(queue, count=None):
    """Remove what waits, batch by batch, and return it."""
    found = []
    while count is None or len(found) < count:
        lines, place = queue.peek_batch()
        if not lines:
            break
        queue.acknowledge(place)
        found += map(json.loads, lines)
    return found


def peek(queue):
    """Return the first batch, and leave it in the queue."""
    return [json.loads(line)["n"] for line in queue.peek_batch()[0]]


def fill(queue, numbers, **more):
    """Put in numbered lines."""
    for number in numbers:
        assert queue.put({"n": number, **more})


VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(value=VALUES)
def test_a_line_is_read_as_it_was_put_in(tmp_path_factory, value):
    queue = DiskQueue(tmp_path_factory.mktemp("queue") / "queue.jsonl")
    queue.put({"value": value, "lone": "\ud800\0\u2028\x85"})
    (line,), _ = queue.peek_batch()
    queue.close()
    assert repr(json.loads(line)) == repr({"value": value, "lone": "\ud800\0\u2028\x85"})


def test_lines_come_in_order_and_stay_until_delivered(opened):
    queue = opened()
    assert queue.empty
    assert queue.peek_batch()[0] == []
    fill(queue, range(3))
    assert peek(queue) == peek(queue) == [0, 1, 2]
    _, place = queue.peek_batch()
    fill(queue, [3])
    queue.acknowledge(place)
    assert not queue.empty
    assert peek(queue) == [3]
    assert [line["n"] for line in read(queue)] == [3]
    assert queue.empty
    assert queue.path.stat().st_size == 17


def test_what_one_process_leaves_the_next_one_finds(opened):
    first = opened()
    fill(first, range(5))
    lines, place = first.peek_batch()
    first.acknowledge(place - len(lines[4]) - len(lines[3]))
    fill(opened(), [5])  # the first was killed: it closed nothing
    assert peek(opened()) == [3, 4, 5]


@pytest.mark.parametrize("cut", [1, 5, 8])
def test_an_incomplete_line_was_never_accepted(opened, cut):
    queue = opened()
    fill(queue, range(2))
    whole = queue.path.read_bytes()
    fill(queue, [2])
    os.truncate(queue.path, len(whole) + cut)
    again = opened()
    assert queue.path.read_bytes() == whole
    fill(again, [3])
    assert peek(opened()) == [0, 1, 3]


@pytest.mark.parametrize(
    "content",
    [b"", b"0", b"00000000000000", b"no head at all, but text", b"\0" * 40, b"9999999999999999\n"],
)
def test_a_file_that_was_never_complete_starts_fresh(opened, content, tmp_path):
    (tmp_path / "queue.jsonl").write_bytes(content)
    queue = opened()
    fill(queue, [1])
    assert peek(queue) == [1]
    assert peek(opened()) == [1]


@pytest.mark.parametrize(
    "head", [b"0000000000009999\n", b"0000000000000003\n", b"garbage garbage!\n"]
)
def test_with_a_wrong_header_everything_is_delivered_again(opened, head):
    queue = opened()
    fill(queue, range(3))
    queue.acknowledge(queue.peek_batch()[1] - 9)
    with queue.path.open("r+b") as file:
        file.write(head)
    again = opened()
    assert peek(again) == [0, 1, 2]
    fill(again, range(3, 2000))  # beyond the place in the wrong header
    assert peek(opened())[:4] == [0, 1, 2, 3]


def test_a_process_that_dies_while_it_empties_the_file_loses_nothing(opened, monkeypatch):
    queue = opened()
    fill(queue, range(100))
    monkeypatch.setattr(disk_queue, "_format_header", lambda begin: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        queue.acknowledge(queue.peek_batch()[1])  # the file is cut, its header is the old one
    monkeypatch.undo()
    again = opened()
    assert again.empty
    fill(again, range(300))
    assert [line["n"] for line in read(opened())] == list(range(300))


def test_it_takes_no_more_than_its_limit(opened):
    queue = opened(limit=1000)
    accepted = 0
    while queue.put({"n": accepted}):
        accepted += 1
        assert queue.path.stat().st_size <= 1000
    assert 80 < accepted < 120
    assert not queue.put({"n": -1})
    assert peek(queue) == list(range(accepted))
    assert len(read(queue)) == accepted
    fill(queue, [0])


def test_room_comes_back_while_some_still_waits(opened):
    queue = opened(limit=1000)
    count = 0
    while queue.put({"n": count}):
        count += 1
    lines, place = queue.peek_batch()
    half = sum(map(len, lines[: count // 2 + 3]))
    queue.acknowledge(place - sum(map(len, lines)) + half)
    size = queue.path.stat().st_size
    assert size < 520
    assert [path.name for path in queue.path.parent.iterdir()] == ["queue.jsonl"]
    fill(queue, [count])
    assert peek(queue) == peek(opened()) == list(range(count // 2 + 3, count + 1))
    queue.acknowledge(queue.peek_batch()[1])  # places continue counting
    assert queue.empty


def test_important_lines_have_room_reserved(opened):
    queue = opened(limit=1000)
    while queue.put({"n": 0}, spare=200):
        pass
    assert 750 < queue.path.stat().st_size <= 800
    fill(queue, range(10))
    assert not queue.put({"n": 0}, spare=200)


def test_batches_are_limited_and_a_line_is_never_split(opened, monkeypatch):
    monkeypatch.setattr(disk_queue, "_BATCH", 100)
    queue = opened()
    fill(queue, range(30))
    fill(queue, ["x" * 1000])
    fill(queue, range(31, 33))
    assert len(queue.peek_batch()[0]) < 15
    found = [line["n"] for line in read(queue)]
    assert found == [*range(30), "x" * 1000, 31, 32]


def test_lines_are_put_in_while_others_are_delivered_and_the_file_is_cut(opened, monkeypatch):
    monkeypatch.setattr(disk_queue, "_BATCH", 300)
    monkeypatch.setattr(disk_queue, "_CHUNK", 64)
    queue, count, inodes = opened(limit=4000), 3000, set()

    def put():
        for number in range(count):
            while not queue.put({"n": number}):
                os.sched_yield()

    writer = threading.Thread(target=put)
    writer.start()
    found = []
    while len(found) < count:
        lines, place = queue.peek_batch()
        if lines:
            queue.acknowledge(place)
            found += [json.loads(line)["n"] for line in lines]
            inodes.add(queue.path.stat().st_ino)
            assert queue.path.stat().st_size <= 4000
    writer.join()
    assert found == list(range(count))
    assert queue.empty


def test_lines_put_in_during_a_copy_are_copied_too(opened, monkeypatch):
    queue = opened(limit=1000)
    fill(queue, range(60))
    copy = disk_queue._copy

    def copied(*arguments):
        monkeypatch.setattr(disk_queue, "_copy", copy)
        fill(queue, [60])
        copy(*arguments)

    monkeypatch.setattr(disk_queue, "_copy", copied)
    lines, place = queue.peek_batch()
    queue.acknowledge(place - sum(map(len, lines[40:])))
    assert peek(queue) == peek(opened()) == list(range(40, 61))


@pytest.mark.parametrize("when", ["_copy", "os.fsync", "os.replace"])
def test_a_disk_without_room_for_a_copy_costs_nothing(opened, monkeypatch, when):
    queue = opened(limit=1000)
    fill(queue, range(60))

    def fail(*arguments, **folders):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(f"trainer.runs.disk_queue.{when}", fail)
    lines, place = queue.peek_batch()
    queue.acknowledge(place - sum(map(len, lines[40:])))
    monkeypatch.undo()
    assert [path.name for path in queue.path.parent.iterdir()] == ["queue.jsonl"]
    assert peek(queue) == peek(opened()) == list(range(40, 60))


def test_a_full_disk_is_reported_and_leaves_complete_lines(opened, monkeypatch):
    queue = opened()
    fill(queue, range(2))
    write, room = os.pwrite, [5]

    def written(file, data, at):
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data[: room.pop()], at)

    monkeypatch.setattr(os, "pwrite", written)
    with pytest.raises(OSError, match="No space left") as raised:
        queue.put({"n": 2})
    monkeypatch.undo()
    assert str(queue.path) in raised.value.__notes__[0]
    fill(queue, [3])
    assert peek(queue) == peek(opened()) == [0, 1, 3]


def test_a_closed_queue_touches_no_file(opened, tmp_path):
    queue = opened()
    fill(queue, range(2))
    numbers = {queue._file, queue._folder}
    _, place = queue.peek_batch()
    queue.close()
    others = [os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in ("other", "another")]
    try:
        assert set(others) == numbers  # these numbers belong to other files now
        for act in (
            lambda: queue.put({"n": 2}),
            queue.peek_batch,
            lambda: queue.acknowledge(place),
            queue.sync,
            queue.check,
            queue.close,
        ):
            with pytest.raises(QueueClosed, match=r"the queue .*queue\.jsonl was closed"):
                act()
        assert [os.fstat(other).st_size for other in others] == [0, 0]
    finally:
        for other in others:
            os.close(other)
    assert peek(opened()) == [0, 1]


def test_a_queue_that_is_closed_while_it_is_copied_stays_as_it_is(opened, monkeypatch):
    queue = opened(limit=1000)
    fill(queue, range(60))
    copy = disk_queue._copy

    def closed(*arguments):
        queue.close()
        copy(*arguments)

    monkeypatch.setattr(disk_queue, "_copy", closed)
    lines, place = queue.peek_batch()
    with pytest.raises(QueueClosed):
        queue.acknowledge(place - sum(map(len, lines[40:])))
    monkeypatch.undo()
    assert [path.name for path in queue.path.parent.iterdir()] == ["queue.jsonl"]
    assert peek(opened()) == list(range(40, 60))


def test_lines_are_synced_unless_they_are_delivered(opened, monkeypatch):
    synced = []
    queue = opened()
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(file))
    queue.sync()
    assert synced == []
    fill(queue, [0])
    queue.sync()
    assert synced == [queue._file]


KILLED = """
made = disk_queue.DiskQueue(Path(path), limit=20_000)
for number in range(10**9):
    while not made.put({"n": number, "pad": "x" * (number % 3000)}):
        lines, place = made.peek_batch()
        half = len(lines) // 2 + 1
        say(("delivered", [json.loads(line)["n"] for line in lines[:half]]))
        made.acknowledge(place - sum(map(len, lines[half:])))
    say(("accepted", number))
"""


@pytest.mark.parametrize("instant", [50, 333, 1000])
def test_a_process_that_is_killed_loses_nothing_that_it_accepted(opened, start, instant):
    process = start(KILLED, path=opened().path)
    accepted, delivered = -1, []
    for _ in range(instant):
        what, value = process.hear()
        if what == "accepted":
            accepted = value
        else:
            delivered += value
    process.kill()
    process.join()
    try:
        while True:
            what, value = process.hear()
            delivered += value if what == "delivered" else []
            accepted = value if what == "accepted" else accepted
    except EOFError:
        pass
    left = [line["n"] for line in read(opened())]
    assert delivered == list(range(len(delivered)))
    first = left[0] if left else len(delivered)
    assert first <= len(delivered)  # the last reported ones may not have been removed
    assert left == list(range(first, first + len(left)))
    assert first + len(left) - 1 in (accepted, accepted + 1)


def test_a_queue_that_was_deleted_is_written_again_and_a_foreign_one_refused(opened, caplog):
    queue = opened()
    queue.put({"do": "beat"})
    queue.path.unlink()
    queue.sync()
    assert "queue.jsonl was deleted during the run" in caplog.text
    queue.put({"do": "end"})
    queue.close()
    again = opened()
    assert [line["do"] for line in read(again)] == ["beat", "end"]
    again.path.write_bytes(b"")  # delivered: nothing is lost
    again.sync()
    again.put({"do": "beat"})
    again.path.rename(again.path.with_name("moved"))
    again.path.write_text("theirs")
    with pytest.raises(OSError, match="was replaced by another file while it was in use"):
        again.sync()
    assert again.path.read_text() == "theirs"
