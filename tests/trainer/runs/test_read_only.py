"""A store that is opened read-only: nothing changes, and the disk may be read-only too."""

import os
import shutil
import subprocess

import pytest

from trainer.__main__ import main
from trainer.runs import Store, Unreachable
from trainer.runs.sql import table_versions


@pytest.fixture
def disk(tmp_path):
    """A folder to fill, and a function that makes it read-only."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid():
        yield folder, lambda: folder.chmod(0o555)
        folder.chmod(0o755)
        return
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("root may write anywhere, and here it may not mount a disk")
    yield folder, lambda: subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    subprocess.run(["umount", "-l", folder], check=True)


def fill_store(folder):
    """Record a run whose last epoch is only in the write-ahead log."""
    store = Store(folder)
    store.register("one", directory="/runs/one", host="another", pid=1, time=0.0)
    store.write_records("one", 1, 10, {"val/loss": 0.5})
    store.close()
    store = Store(folder)
    store.write_records("one", 2, 20, {"val/loss": 0.25})
    return store


@pytest.mark.parametrize(("logged", "epochs"), [(False, [1]), (True, [1, 2])])
def test_a_store_on_a_read_only_disk_is_read(disk, tmp_path, monkeypatch, capsys, logged, epochs):
    folder, freeze = disk
    monkeypatch.chdir(tmp_path)
    store = fill_store(tmp_path / "alive")
    names = ["store.sqlite", "store.sqlite-wal"] if logged else ["store.sqlite"]
    for name in names:  # as in a snapshot of a disk
        shutil.copy(tmp_path / "alive" / name, folder / name)
    store.close()
    freeze()
    with Store(folder, read_only=True) as frozen:
        assert [record.epoch for record in frozen.records("one")] == epochs
        copy = frozen.connection._copy
        assert (copy is not None) == logged
    assert copy is None or not os.path.exists(copy.name)
    for words in (["runs"], ["show", "one"], ["watch", "one", "--once"], ["compare", "one", "one"]):
        assert main([*words, "--store", str(folder)]) in (0, 2, 3)
    assert main(["export", "one", "--store", str(folder)]) == 0
    assert "cannot be reached" not in capsys.readouterr().err
    assert len((tmp_path / "one-export" / "records.csv").read_text().splitlines()) == 1 + len(
        epochs
    )
    assert sorted(os.listdir(folder)) == names


def test_a_read_only_store_refuses_every_change(url):
    with Store(url) as store:
        store.write_records("one", 1, 10, {"loss": 0.5})
    with Store(url, read_only=True) as store:
        assert [record.value for record in store.records("one")] == [0.5]
        for change in (
            lambda: store.write_records("one", 2, 20, {"loss": 0.25}),
            lambda: store.remove("one"),
            lambda: store.connection.execute("DELETE FROM records"),
        ):
            with pytest.raises(Unreachable, match="read-?only"):
                change()
    with Store(url) as store:
        assert [record.value for record in store.records("one")] == [0.5]


def test_an_older_store_is_read_without_an_upgrade(tmp_path, monkeypatch):
    with monkeypatch.context() as older:
        older.setattr(table_versions, "MIGRATIONS", table_versions.MIGRATIONS[:1])
        older.setattr(table_versions, "VERSION", 1)
        with Store(tmp_path) as store:
            store.register("one", directory="/runs/one", host="here", pid=1, time=0.0)
    with Store(tmp_path, read_only=True) as store:
        assert [row.name for row in store.runs()] == ["one"]
        assert table_versions.read_version(store.connection) == 1
    monkeypatch.setattr(table_versions, "OLDEST_READABLE", 2)
    with pytest.raises(ValueError, match="bring it up to date, entracte deliver --store"):
        Store(tmp_path, read_only=True)
    with Store(tmp_path, create=False) as store:
        assert table_versions.read_version(store.connection) == table_versions.VERSION


def test_a_pipe_instead_of_a_store_is_refused_without_a_wait(tmp_path):
    os.mkfifo(tmp_path / "store.sqlite")
    for settings in ({}, {"create": False}, {"read_only": True}):
        with pytest.raises(Unreachable, match="it is a named pipe, and must be a file"):
            Store(tmp_path, **settings)
