"""Parts of a checkpoint, written here by one process in the name of several."""

import functools
import threading

import jax
import numpy as np
import pytest

from trainer.checkpoints import manifest, parts, publishing, staging
from trainer.checkpoints.arrays import sharing
from trainer.checkpoints.arrays.damage import DamagedCheckpoint
from trainer.checkpoints.arrays.leaves import Leaf, Piece
from trainer.checkpoints.arrays.orbax_index import INDEX_FILES
from trainer.checkpoints.arrays.rebuild import assemble
from trainer.checkpoints.arrays.sharing import EarlierPieces
from trainer.checkpoints.piece_reader import read_blocks
from trainer.checkpoints.publishing import RunMemory

WHOLE = np.arange(60, dtype=np.float32).reshape(6, 10)
HEAD = {"scores": {}, "config": None}
GRIDS = {
    "rows": [[(0, 3)], [(3, 6)]],
    "several each": [[(0, 1), (5, 6)], [(1, 2), (2, 5)]],
    "none on the main process": [[], [(0, 6)]],
    "none on the other": [[(0, 6)], []],
}


def make_snapshot(rows):
    """Return what a process writes that has these rows; a leaf that is not split is beside it."""
    pieces, buffer, end = [], np.zeros(1024, np.uint8), 0
    for start, stop in rows:
        content = WHOLE[start:stop].tobytes()
        buffer[end : end + len(content)] = np.frombuffer(content, np.uint8)
        pieces.append(Piece(end, ((start, stop), (0, 10))))
        end += -(-len(content) // 64) * 64
    leaves = [Leaf("w", "float32", (6, 10), 4, tuple(pieces)), Leaf("n", "int", value="0x3")]
    return parts.Snapshot(7, {"": leaves}, buffer)


@pytest.fixture
def as_process(monkeypatch):
    return lambda number: monkeypatch.setattr(jax, "process_index", lambda: number)


def save(directory, grid, as_process, memory=None):
    """Save a checkpoint of several processes, one after the other."""
    made = staging.Staging(directory, 10.0)
    stage = made.choose_stage(7)
    for process, rows in enumerate(grid[1:], 1):
        as_process(process)
        parts.write_part(stage, make_snapshot(rows), lambda: False, EarlierPieces())
    as_process(0)
    wait = functools.partial(made.wait_for_parts, stage, len(grid))
    publishing.remove_leftovers(stage, RunMemory().named, first=True)
    publishing.write_checkpoint(
        stage,
        make_snapshot(grid[0]),
        HEAD,
        lambda: False,
        wait,
        memory or RunMemory(),
        EarlierPieces(),
    )
    return directory / "7"


def read(directory, *boxes):
    """Read boxes of the array, each as this process would need it."""
    saved = publishing.read_manifest(directory, 7)
    leaves = manifest.parse_leaves(saved)[""]
    blocks = read_blocks(directory, 7, saved, leaves, {"w": boxes})["w"]
    return [assemble(blocks, np.dtype(np.float32), (6, 10), box) for box in boxes]


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_any_box_is_read_from_any_split(tmp_path, as_process, grid):
    save(tmp_path, grid, as_process)
    for process in (0, 1, 5):
        as_process(process)
        (whole,) = read(tmp_path, ((0, 6), (0, 10)))
        assert np.array_equal(whole, WHOLE)
        top, bottom = read(tmp_path, ((0, 2), (3, 9)), ((4, 6), (0, 10)))
        assert np.array_equal(top, WHOLE[:2, 3:9])
        assert np.array_equal(bottom, WHOLE[4:])


def test_a_process_reads_its_own_part_alone(tmp_path, as_process):
    checkpoint = save(tmp_path, GRIDS["rows"], as_process)
    (checkpoint / "arrays/process_0").unlink()
    as_process(1)
    (mine,) = read(tmp_path, ((3, 6), (0, 10)))
    assert np.array_equal(mine, WHOLE[3:])
    with pytest.raises(DamagedCheckpoint, match="arrays/process_0 is missing"):
        read(tmp_path, ((2, 6), (0, 10)))


def test_a_process_opens_the_parts_that_hold_what_it_needs_and_no_others(tmp_path, as_process):
    rows = [[(n, n + 1)] for n in range(6)]
    checkpoint = save(tmp_path, rows, as_process)
    for other in (0, 1, 2, 5):
        (checkpoint / f"arrays/process_{other}").unlink()
        (checkpoint / f"part_{other}.json").unlink(missing_ok=True)
    as_process(1)
    (box,) = read(tmp_path, ((3, 5), (2, 9)))
    assert np.array_equal(box, WHOLE[3:5, 2:9])


def test_a_wrong_hint_at_holders_misleads_nobody(tmp_path, as_process):
    checkpoint = save(tmp_path, GRIDS["rows"], as_process)
    saved = publishing.read_manifest(tmp_path, 7)
    assert saved["holders"] == [{"grid": [2, 1], "processes": [0, 1], "paths": ["w"]}]
    wrong = [
        *([{"grid": [2, 1], "processes": [1, 9], "paths": ["w", "n", "not there"]}], []),
        [{"grid": [7], "processes": [0] * 7, "paths": ["w"]}],
    ]
    for holders in wrong:
        content = manifest.encode_manifest({**saved, "holders": holders})
        (checkpoint / "manifest.json").write_bytes(content)
        assert np.array_equal(read(tmp_path, ((0, 6), (0, 10)))[0], WHOLE)


def test_parts_are_listed_again_only_where_a_box_changed(tmp_path, as_process, monkeypatch):
    memory, read_parts, reads = RunMemory(), parts.read_part_pieces, []

    def count(stage, process, *rest):
        reads.append(process)
        return read_parts(stage, process, *rest)

    monkeypatch.setattr(parts, "read_part_pieces", count)
    first = save(tmp_path, GRIDS["rows"], as_process, memory)
    files = {name: (first / "arrays" / name).read_bytes() for name in INDEX_FILES}
    assert reads == [0, 1]
    again = save(tmp_path, GRIDS["rows"], as_process, memory)
    assert reads == [0, 1]
    assert files == {name: (again / "arrays" / name).read_bytes() for name in INDEX_FILES}
    save(tmp_path, GRIDS["several each"], as_process, memory)
    assert reads == [0, 1, 0, 1]
    assert publishing.read_manifest(tmp_path, 7)["holders"] == []
    assert np.array_equal(read(tmp_path, ((0, 6), (0, 10)))[0], WHOLE)


@pytest.mark.parametrize(
    "grid", [[[(0, 3)], [(4, 6)]], [[(0, 3)], [(2, 6)]]], ids=["a row lacks", "a row twice"]
)
def test_parts_that_do_not_make_up_whole_arrays_are_not_published(tmp_path, as_process, grid):
    with pytest.raises(RuntimeError, match="did not write every element of w once"):
        save(tmp_path, grid, as_process)
    assert list(tmp_path.iterdir()) == []


def test_a_part_of_another_save_is_damage(tmp_path, as_process):
    checkpoint = save(tmp_path, GRIDS["rows"], as_process)
    other = save(tmp_path / "..", GRIDS["several each"], as_process)
    (other / "part_1.json").replace(checkpoint / "part_1.json")
    with pytest.raises(DamagedCheckpoint, match=r"part_1.json is not the one that was published"):
        read(tmp_path, ((0, 6), (0, 10)))


def test_what_a_killed_run_left_is_never_mixed_in(tmp_path, as_process):
    zombie = staging.Staging(tmp_path, 10.0).choose_stage(7)
    as_process(1)
    parts.write_part(zombie, make_snapshot([(0, 6)]), lambda: False, EarlierPieces())
    checkpoint = save(tmp_path, GRIDS["rows"], as_process)
    as_process(1)
    parts.write_part(
        zombie, make_snapshot([(0, 6)]), lambda: False, EarlierPieces()
    )  # it comes back later
    assert np.array_equal(read(tmp_path, ((0, 6), (0, 10)))[0], WHOLE)
    save(tmp_path, GRIDS["rows"], as_process)
    assert [path for path in tmp_path.iterdir() if path != checkpoint] == []


def test_the_main_process_waits_for_a_slow_one(tmp_path, as_process):
    made = staging.Staging(tmp_path, 10.0)
    stage = made.choose_stage(7)
    as_process(1)
    stage.mkdir()
    args = (stage, make_snapshot([(0, 6)]), lambda: False, EarlierPieces())
    threading.Timer(0.1, lambda: parts.write_part(*args)).start()
    assert len(made.wait_for_parts(stage, 2)) == 1


def test_a_part_that_does_not_come_ends_the_save_and_names_the_process(tmp_path, as_process):
    made = staging.Staging(tmp_path, 0.05)
    stage = made.choose_stage(7)
    as_process(0)
    with pytest.raises(TimeoutError, match=r"processes \[1, 2\] did not write their parts within"):
        publishing.write_checkpoint(
            stage,
            make_snapshot([(0, 6)]),
            HEAD,
            lambda: False,
            lambda: made.wait_for_parts(stage, 3),
            RunMemory(),
            EarlierPieces(),
        )
    assert list(tmp_path.iterdir()) == []


def test_a_failed_run_does_not_wait_for_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(staging, "_PATIENCE", 0.0)
    made = staging.Staging(tmp_path, None)
    stage = made.choose_stage(7)
    stage.mkdir()
    made.hurry()
    with pytest.raises(TimeoutError, match=r"processes \[1\] did not"):
        made.wait_for_parts(stage, 2)


def test_a_process_that_cannot_write_says_why(tmp_path, as_process, monkeypatch):
    made = staging.Staging(tmp_path, 10.0)
    stage = made.choose_stage(7)
    as_process(1)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(parts.array_storage, "save_arrays", full)
    with pytest.raises(OSError, match="No space left"):
        parts.write_part(stage, make_snapshot([(0, 6)]), lambda: False, EarlierPieces())
    with pytest.raises(RuntimeError, match=r"process 1 could not write its part: OSError.*space"):
        made.wait_for_parts(stage, 2)


def test_a_save_that_the_main_process_gave_up_is_no_error_of_the_disk(
    tmp_path, as_process, monkeypatch
):
    stage = staging.Staging(tmp_path, 10.0).choose_stage(7)
    as_process(1)
    write = parts.array_storage.save_arrays

    def give_up(file, *data):
        write(file, *data)
        file.unlink()
        file.parent.rmdir()
        stage.rmdir()

    monkeypatch.setattr(parts.array_storage, "save_arrays", give_up)
    with pytest.raises(RuntimeError, match="the main process gave up saving epoch 7"):
        parts.write_part(stage, make_snapshot([(0, 6)]), lambda: False, EarlierPieces())


def test_each_process_refers_to_its_own_pieces(tmp_path, as_process, monkeypatch):
    monkeypatch.setattr(sharing, "SMALLEST", 1)
    made, memory, earlier = staging.Staging(tmp_path, 10.0), RunMemory(), {}
    for number in range(3):
        stage = made.choose_stage(7)
        as_process(1)
        earlier[1] = parts.write_part(
            stage, make_snapshot([(3, 6)]), lambda: False, earlier.get(1, EarlierPieces())
        )
        as_process(0)
        wait = functools.partial(made.wait_for_parts, stage, 2)
        arguments = (HEAD, lambda: False, wait, memory, earlier.get(0, EarlierPieces()))
        earlier[0] = publishing.write_checkpoint(stage, make_snapshot([(0, 3)]), *arguments)
        files = {file.name: file.stat().st_size for file in (tmp_path / "7/arrays").glob("*_[01]*")}
        shared = {name: size for name, size in files.items() if "." in name}
        assert {name.partition(".")[0] for name in shared} == (
            {"process_0", "process_1"} if number else set()
        )
        assert np.array_equal(read(tmp_path, ((0, 6), (0, 10)))[0], WHOLE)
    assert {files["process_0"], files["process_1"]} == {0}
    (mine,) = (tmp_path / "7/arrays").glob("process_1.*")
    mine.unlink()
    assert np.array_equal(read(tmp_path, ((0, 3), (0, 10)))[0], WHOLE[:3])
    with pytest.raises(DamagedCheckpoint, match=rf"arrays/{mine.name} is missing"):
        read(tmp_path, ((0, 6), (0, 10)))
