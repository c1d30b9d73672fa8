"""A run's records when its directory is copied, moved, or trained from scratch."""

import errno
import shutil

import pytest

from trainer import Checkpoints
from trainer.checkpoints.storage.directory_lock import find_holder
from trainer.runs import Run, Store
from trainer.runs.disk_queue import DiskQueue


def record_epochs(folder, name, epochs):
    run = Run(folder / name)
    run.resume(epoch=0, step=0)
    for epoch in epochs:
        run.record(epoch, 10 * epoch, {"loss": 1.0})
    return run


def epochs_of(folder, name):
    with Store(folder) as store:
        return [record.epoch for record in store.records(name, ["loss"])]


def test_a_copy_does_not_deliver_what_waited_in_the_original(tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.runs.delivery.deliver", lambda store, queue: 0)
    monkeypatch.setattr("trainer.runs.recorder.CLOSE_SECONDS", 0.2)
    record_epochs(tmp_path, "first", [1]).close()  # everything waits
    shutil.copytree(tmp_path / "first", tmp_path / "copy")
    monkeypatch.undo()
    run = Run(tmp_path / "first")
    run.resume(epoch=1, step=10)
    run.record(2, 20, {"loss": 1.0})
    run.end("finished")
    run.close()
    record_epochs(tmp_path, "copy", [1]).close()
    assert epochs_of(tmp_path, "first") == [1, 2]
    assert epochs_of(tmp_path, "copy") == [1]
    with Store(tmp_path) as store:
        assert store.run("first").state == "finished"


def test_a_run_that_was_moved_away_is_reported_before_another_replaces_it(tmp_path, caplog):
    record_epochs(tmp_path, "first", [1, 2]).close()
    Run(tmp_path / "first")
    assert "nothing of it is in" not in caplog.text
    (tmp_path / "first").rename(tmp_path / "away")
    Run(tmp_path / "first")
    assert "nothing of it is in" in caplog.text


def test_a_full_disk_is_reported_and_the_directory_is_unlocked(tmp_path, monkeypatch):
    run = record_epochs(tmp_path, "first", [1])

    def full(self, *line, **settings):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(DiskQueue, "put", full)
        with pytest.raises(OSError, match="No space left"):
            run.close()
    assert not run.is_recording
    assert find_holder(tmp_path / "first") is None
    record_epochs(tmp_path, "first", [1, 2]).close()
    assert epochs_of(tmp_path, "first") == [1, 2]


def files_of(folder, name):
    with Store(folder) as store:
        return [file.path for file in store.artifacts(name)]


@pytest.mark.parametrize("store_too", [False, True])
def test_a_run_that_was_moved_lists_its_files_once_where_they_are(tmp_path, store_too):
    old, new = tmp_path / "old", tmp_path / "new"
    folder = old / "first"
    (folder / "replays").mkdir(parents=True)
    (tmp_path / "aside.gif").write_text("some")
    names = ["history.png", "evaluations/full/a.png", "replays/3-0.gif"]
    (folder / "evaluations" / "full").mkdir(parents=True)
    for name in names:
        (folder / name).write_text("some")
    run = Run(folder, store=old)
    run.resume(epoch=3, step=30)
    run.record_artifact(folder / "evaluations" / "full" / "a.png", "plot", epoch=2, step=20)
    run.record_artifact(tmp_path / "aside.gif", "replay", epoch=4, step=40)
    run.close()
    aside = str(tmp_path / "aside.gif")
    assert files_of(old, "first") == [*(f"{folder}/{name}" for name in names), aside]

    if store_too:
        old.rename(new)
    else:
        new.mkdir()
        folder.rename(new / "first")
    (new / "first" / "replays" / "3-0.gif").unlink()
    (new / "first" / "replays" / "4-0.gif").write_text("some")
    store = new if store_too else old
    run = Run(new / "first", store=store)
    run.resume(epoch=4, step=40)
    run.close()
    names[-1] = "replays/4-0.gif"
    assert sorted(files_of(store, "first")) == sorted(
        [*(f"{new / 'first'}/{name}" for name in names), aside]
    )


def test_lines_queued_before_a_move_delete_no_file_from_the_list(tmp_path, monkeypatch):
    """The queued line names the old place, which no longer exists."""
    monkeypatch.setattr("trainer.runs.delivery.deliver", lambda store, queue: 0)
    monkeypatch.setattr("trainer.runs.recorder.CLOSE_SECONDS", 0.2)
    run = record_epochs(tmp_path, "first", [1])
    (run.directory / "evaluations").mkdir()
    (run.directory / "evaluations" / "a.png").write_text("some")
    run.record_artifact(run.directory / "evaluations" / "a.png", "plot", epoch=0, step=0)
    run.close()
    monkeypatch.undo()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "first").rename(tmp_path / "elsewhere" / "first")
    run = Run(tmp_path / "elsewhere" / "first", store=tmp_path)
    run.resume(epoch=1, step=10)
    run.close()
    assert files_of(tmp_path, "first") == [f"{run.directory}/evaluations/a.png"]


@pytest.mark.parametrize("order", [("run", "link"), ("link", "run"), ("run", "far/link")])
def test_a_run_trained_through_a_link_and_by_its_path_has_one_entry(tmp_path, order):
    (tmp_path / "run").mkdir()
    (tmp_path / "far").mkdir()
    for link in (tmp_path / "link", tmp_path / "far" / "link"):
        link.symlink_to(tmp_path / "run")
    for place, name in enumerate(order):
        run = Run(tmp_path / name, store=tmp_path)
        run.resume(epoch=place, step=10 * place)
        run.record(place + 1, 10 * place + 10, {"loss": 1.0})
        (tmp_path / "run" / "aside").mkdir(exist_ok=True)
        (tmp_path / "run" / "aside" / "a.png").write_text("some")
        run.record_artifact(tmp_path / name / "aside" / "a.png", "plot", epoch=0, step=0)
        run.close()
    with Store(tmp_path) as store:
        (row,) = store.runs()
        assert row.directory == str(tmp_path / "run")
        assert [record.epoch for record in store.records(row.name)] == [1, 2]
        assert [a.path for a in store.artifacts(row.name)] == [str(tmp_path / "run/aside/a.png")]


def test_a_run_that_was_moved_and_renamed_learns_how_to_continue_its_entry(tmp_path, state, caplog):
    with Checkpoints(tmp_path / "first") as checkpoints:
        checkpoints.save(state.replace(epoch=state.epoch + 1))
    record_epochs(tmp_path, "first", [1]).close()
    shutil.copytree(tmp_path / "first", tmp_path / "copy")
    Run(tmp_path / "copy")
    assert "holds what run" not in caplog.text  # the original still exists: this is another run
    shutil.rmtree(tmp_path / "copy")
    (tmp_path / "first").rename(tmp_path / "second")
    Run(tmp_path / "second")
    assert "Run(..., name='first') continues its entry" in caplog.text
    run = Run(tmp_path / "second", name="first")
    run.resume(epoch=1, step=10)
    run.record(2, 20, {"loss": 1.0})
    run.close()
    assert epochs_of(tmp_path, "first") == [1, 2]
    again = Run(tmp_path / "second")  # which is recorded by now
    assert again.name == "first"
    caplog.clear()
    assert Run(tmp_path / "second", name="third").name == "third"
    assert "is recorded as run 'first' too: leave name= out" in caplog.text
