"""What a queue accepted stays in it until it is delivered, whatever happens to its process."""

import errno
import json
import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.runs import disk_queue as journals
from trainer.runs.disk_queue import DiskQueue, QueueClosed


@pytest.fixture
def opened(tmp_path):
    """Give a function that opens the queue, as another process would after this one."""
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


def read(journal, count=None):
    """Take out what waits, batch by batch; give it."""
    found = []
    while count is None or len(found) < count:
        lines, place = journal.waiting()
        if not lines:
            break
        journal.acknowledge(place)
        found += map(json.loads, lines)
    return found


def peeked(journal):
    """Give the first batch, and leave it."""
    return [json.loads(line)["n"] for line in journal.waiting()[0]]


def fill(journal, numbers, **more):
    """Put numbered lines in."""
    for number in numbers:
        assert journal.put({"n": number, **more})


VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(value=VALUES)
def test_a_line_comes_back_as_it_was_put_in(tmp_path_factory, value):
    journal = DiskQueue(tmp_path_factory.mktemp("queue") / "queue.jsonl")
    journal.put({"value": value, "lone": "\ud800\0\u2028\x85"})
    (line,), _ = journal.waiting()
    journal.close()
    assert repr(json.loads(line)) == repr({"value": value, "lone": "\ud800\0\u2028\x85"})


def test_lines_come_in_order_and_stay_until_delivered(opened):
    journal = opened()
    assert journal.empty
    assert journal.waiting()[0] == []
    fill(journal, range(3))
    assert peeked(journal) == peeked(journal) == [0, 1, 2]
    _, place = journal.waiting()
    fill(journal, [3])
    journal.acknowledge(place)
    assert not journal.empty
    assert peeked(journal) == [3]
    assert [line["n"] for line in read(journal)] == [3]
    assert journal.empty
    assert journal.path.stat().st_size == 17


def test_what_one_process_leaves_the_next_one_finds(opened):
    first = opened()
    fill(first, range(5))
    lines, place = first.waiting()
    first.acknowledge(place - len(lines[4]) - len(lines[3]))
    fill(opened(), [5])  # the first was killed: it closed nothing
    assert peeked(opened()) == [3, 4, 5]


@pytest.mark.parametrize("cut", [1, 5, 8])
def test_a_torn_line_was_never_accepted(opened, cut):
    journal = opened()
    fill(journal, range(2))
    whole = journal.path.read_bytes()
    fill(journal, [2])
    os.truncate(journal.path, len(whole) + cut)
    again = opened()
    assert journal.path.read_bytes() == whole
    fill(again, [3])
    assert peeked(opened()) == [0, 1, 3]


@pytest.mark.parametrize(
    "content",
    [b"", b"0", b"00000000000000", b"no head at all, but text", b"\0" * 40, b"9999999999999999\n"],
)
def test_a_file_that_was_never_whole_is_begun_anew(opened, content, tmp_path):
    (tmp_path / "queue.jsonl").write_bytes(content)
    journal = opened()
    fill(journal, [1])
    assert peeked(journal) == [1]
    assert peeked(opened()) == [1]


@pytest.mark.parametrize(
    "head", [b"0000000000009999\n", b"0000000000000003\n", b"garbage garbage!\n"]
)
def test_where_the_head_is_wrong_all_is_delivered_again(opened, head):
    journal = opened()
    fill(journal, range(3))
    journal.acknowledge(journal.waiting()[1] - 9)
    with journal.path.open("r+b") as file:
        file.write(head)
    again = opened()
    assert peeked(again) == [0, 1, 2]
    fill(again, range(3, 2000))  # beyond the place that the head had told of
    assert peeked(opened())[:4] == [0, 1, 2, 3]


def test_a_process_that_dies_while_it_empties_the_file_loses_nothing(opened, monkeypatch):
    journal = opened()
    fill(journal, range(100))
    monkeypatch.setattr(journals, "_head", lambda begin: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        journal.acknowledge(journal.waiting()[1])  # the file is cut, its head is the old one
    monkeypatch.undo()
    again = opened()
    assert again.empty
    fill(again, range(300))
    assert [line["n"] for line in read(opened())] == list(range(300))


def test_it_takes_no_more_than_its_limit(opened):
    journal = opened(limit=1000)
    accepted = 0
    while journal.put({"n": accepted}):
        accepted += 1
        assert journal.path.stat().st_size <= 1000
    assert 80 < accepted < 120
    assert not journal.put({"n": -1})
    assert peeked(journal) == list(range(accepted))
    assert len(read(journal)) == accepted
    fill(journal, [0])


def test_room_comes_back_while_some_still_waits(opened):
    journal = opened(limit=1000)
    count = 0
    while journal.put({"n": count}):
        count += 1
    lines, place = journal.waiting()
    half = sum(map(len, lines[: count // 2 + 3]))
    journal.acknowledge(place - sum(map(len, lines)) + half)
    size = journal.path.stat().st_size
    assert size < 520
    assert [path.name for path in journal.path.parent.iterdir()] == ["queue.jsonl"]
    fill(journal, [count])
    assert peeked(journal) == peeked(opened()) == list(range(count // 2 + 3, count + 1))
    journal.acknowledge(journal.waiting()[1])  # places go on counting
    assert journal.empty


def test_what_is_of_more_weight_has_room_left(opened):
    journal = opened(limit=1000)
    while journal.put({"n": 0}, spare=200):
        pass
    assert 750 < journal.path.stat().st_size <= 800
    fill(journal, range(10))
    assert not journal.put({"n": 0}, spare=200)


def test_batches_are_bounded_and_a_line_is_never_cut(opened, monkeypatch):
    monkeypatch.setattr(journals, "_BATCH", 100)
    journal = opened()
    fill(journal, range(30))
    fill(journal, ["x" * 1000])
    fill(journal, range(31, 33))
    assert len(journal.waiting()[0]) < 15
    found = [line["n"] for line in read(journal)]
    assert found == [*range(30), "x" * 1000, 31, 32]


def test_lines_are_put_in_while_others_are_delivered_and_the_file_is_cut(opened, monkeypatch):
    monkeypatch.setattr(journals, "_BATCH", 300)
    monkeypatch.setattr(journals, "_CHUNK", 64)
    journal, count, inodes = opened(limit=4000), 3000, set()

    def put():
        for number in range(count):
            while not journal.put({"n": number}):
                os.sched_yield()

    writer = threading.Thread(target=put)
    writer.start()
    found = []
    while len(found) < count:
        lines, place = journal.waiting()
        if lines:
            journal.acknowledge(place)
            found += [json.loads(line)["n"] for line in lines]
            inodes.add(journal.path.stat().st_ino)
            assert journal.path.stat().st_size <= 4000
    writer.join()
    assert found == list(range(count))
    assert journal.empty


def test_what_is_put_in_while_the_file_is_copied_is_copied_too(opened, monkeypatch):
    journal = opened(limit=1000)
    fill(journal, range(60))
    copy = journals._copy

    def copied(*arguments):
        monkeypatch.setattr(journals, "_copy", copy)
        fill(journal, [60])
        copy(*arguments)

    monkeypatch.setattr(journals, "_copy", copied)
    lines, place = journal.waiting()
    journal.acknowledge(place - sum(map(len, lines[40:])))
    assert peeked(journal) == peeked(opened()) == list(range(40, 61))


@pytest.mark.parametrize("when", ["_copy", "os.fsync", "os.replace"])
def test_a_disk_without_room_for_a_copy_costs_nothing(opened, monkeypatch, when):
    journal = opened(limit=1000)
    fill(journal, range(60))

    def fail(*arguments, **folders):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(f"trainer.runs.disk_queue.{when}", fail)
    lines, place = journal.waiting()
    journal.acknowledge(place - sum(map(len, lines[40:])))
    monkeypatch.undo()
    assert [path.name for path in journal.path.parent.iterdir()] == ["queue.jsonl"]
    assert peeked(journal) == peeked(opened()) == list(range(40, 60))


def test_a_full_disk_is_told_of_and_leaves_whole_lines(opened, monkeypatch):
    journal = opened()
    fill(journal, range(2))
    write, room = os.pwrite, [5]

    def written(file, data, at):
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data[: room.pop()], at)

    monkeypatch.setattr(os, "pwrite", written)
    with pytest.raises(OSError, match="No space left") as raised:
        journal.put({"n": 2})
    monkeypatch.undo()
    assert str(journal.path) in raised.value.__notes__[0]
    fill(journal, [3])
    assert peeked(journal) == peeked(opened()) == [0, 1, 3]


def test_a_closed_queue_touches_no_file(opened, tmp_path):
    journal = opened()
    fill(journal, range(2))
    numbers = {journal._file, journal._folder}
    _, place = journal.waiting()
    journal.close()
    others = [os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in ("other", "another")]
    try:
        assert set(others) == numbers  # the very numbers are other files' now
        for act in (
            lambda: journal.put({"n": 2}),
            journal.waiting,
            lambda: journal.acknowledge(place),
            journal.sync,
            journal.check,
            journal.close,
        ):
            with pytest.raises(QueueClosed, match=r"the queue .*queue\.jsonl was closed"):
                act()
        assert [os.fstat(other).st_size for other in others] == [0, 0]
    finally:
        for other in others:
            os.close(other)
    assert peeked(opened()) == [0, 1]


def test_a_queue_that_is_closed_while_it_is_copied_stays_as_it_is(opened, monkeypatch):
    journal = opened(limit=1000)
    fill(journal, range(60))
    copy = journals._copy

    def closed(*arguments):
        journal.close()
        copy(*arguments)

    monkeypatch.setattr(journals, "_copy", closed)
    lines, place = journal.waiting()
    with pytest.raises(QueueClosed):
        journal.acknowledge(place - sum(map(len, lines[40:])))
    monkeypatch.undo()
    assert [path.name for path in journal.path.parent.iterdir()] == ["queue.jsonl"]
    assert peeked(opened()) == list(range(40, 60))


def test_what_was_put_in_is_synced_unless_it_is_delivered(opened, monkeypatch):
    synced = []
    journal = opened()
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(file))
    journal.sync()
    assert synced == []
    fill(journal, [0])
    journal.sync()
    assert synced == [journal._file]


KILLED = """
made = journal.Journal(Path(path), limit=20_000)
for number in range(10**9):
    while not made.put({"n": number, "pad": "x" * (number % 3000)}):
        lines, place = made.waiting()
        half = len(lines) // 2 + 1
        say(("delivered", [json.loads(line)["n"] for line in lines[:half]]))
        made.delivered(place - sum(map(len, lines[half:])))
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
    assert first <= len(delivered)  # what was told of last may not have been taken out
    assert left == list(range(first, first + len(left)))
    assert first + len(left) - 1 in (accepted, accepted + 1)


def test_a_queue_that_was_deleted_is_written_again_and_a_foreign_one_refused(opened, caplog):
    journal = opened()
    journal.put({"do": "beat"})
    journal.path.unlink()
    journal.sync()
    assert "queue.jsonl was deleted while the run goes on" in caplog.text
    journal.put({"do": "end"})
    journal.close()
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
