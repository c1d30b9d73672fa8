"""Migrations of an older store."""

from trainer.runs import Store
from trainer.runs.rows import Artifact
from trainer.runs.sql import table_versions
from trainer.runs.sql.table_versions import MIGRATIONS


def test_a_migration_finds_files_where_the_directory_now_is(url, monkeypatch):
    """Version 1 stored absolute paths: a run that was moved once has each file twice."""
    monkeypatch.setattr(table_versions, "MIGRATIONS", MIGRATIONS[:1])
    monkeypatch.setattr(table_versions, "VERSION", 1)
    paths = ["/new/one/a.gif", "/new/one/replays/2-0.gif"]
    with Store(url) as store:
        about = {"host": "here", "pid": 1, "time": 1.0}
        store.register("one", directory="/new/one", **about)
        store.register("two", directory="/new/one/two", **about)
        for path in (*paths, "/old/one/a.gif", "/old/one/replays/2-0.gif", "/elsewhere/b.gif"):
            store.write_artifact("one", Artifact(path, "replay", 2, 28, 9))
        for path in ("/new/one/a.gif", "/new/one/two/a.gif", "/new/one/twofold.gif"):
            store.write_artifact("two", Artifact(path, "replay", 1 + len(path), 28, 9))
    monkeypatch.undo()
    with Store(url) as store:
        assert [file.path for file in store.artifacts("one")] == sorted(
            [*paths, "/elsewhere/b.gif"]
        )
        store.register("one", directory="/newer", **about)
        store.register("two", directory="/newer/two", **about)
        assert {file.path for file in store.artifacts("one")} == {
            "/newer/a.gif",
            "/newer/replays/2-0.gif",
            "/elsewhere/b.gif",
        }
        assert {file.path for file in store.artifacts("two")} == {
            "/new/one/a.gif",
            "/newer/two/a.gif",
            "/new/one/twofold.gif",
        }
