"""How a store is named, and how to connect to it."""

import os
import sys
from pathlib import Path

import pytest

from trainer.host.redaction import redact_text
from trainer.runs.sql.connecting import connect, resolve_store_url
from trainer.runs.sql.connection import Unreachable


@pytest.mark.parametrize(
    ("store", "url"),
    [
        ("postgresql://me@host/a", "postgresql://me@host/a"),
        ("postgres://me@host/a", "postgresql://me@host/a"),
        ("sqlite:////a/b", "sqlite:////a/b"),
        ("/runs", "sqlite:////runs/store.sqlite"),
        ("/runs.d", "sqlite:////runs.d/store.sqlite"),
        ("/a.sqlite", "sqlite:////a.sqlite"),
        (Path("/a.sqlite3"), "sqlite:////a.sqlite3"),
        (Path("/a b/ü?#%20.db"), "sqlite:////a b/ü?#%20.db"),
    ],
)
def test_a_store_is_named_by_url_file_or_directory(store, url):
    assert resolve_store_url(store) == url
    assert resolve_store_url(url) == url


def test_a_relative_path_is_resolved_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_store_url("runs") == f"sqlite:///{tmp_path}/runs/store.sqlite"
    assert resolve_store_url("sqlite:///all.db") == f"sqlite:///{tmp_path}/all.db"


@pytest.mark.parametrize(
    "store", ["mysql://me:secret@host/a", "sqlite://a.db", "sqlite:///", "://"]
)
def test_another_kind_of_url_is_refused(store):
    with pytest.raises(ValueError, match="a store is a directory of runs") as raised:
        resolve_store_url(store)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://host:5432/a", "postgresql://host:5432/a"),
        ("postgresql://me@host/a?user=b", "postgresql://me@host/a?user=b"),
        ("postgresql://me:p@host/a", "postgresql://me:***@host/a"),
        ("postgresql://me:p/@:#?p@host/a", "postgresql://me:***@host/a"),
        ("postgresql://:p@/a", "postgresql://:***@/a"),
        (
            "postgresql://h/a?sslpassword=p&password=p",
            "postgresql://h/a?sslpassword=***&password=***",
        ),
        ("train --store postgresql://me:p@h/a --x", "train --store postgresql://me:***@h/a --x"),
        ("postgresql://[::1]:5/a", "postgresql://[::1]:5/a"),
        ("/runs/store.sqlite", "/runs/store.sqlite"),
    ],
)
def test_passwords_are_redacted(url, shown):
    assert redact_text(url) == shown


@pytest.mark.parametrize(
    ("saved", "resolved"),
    [
        ("postgresql://me:***@host/a?sslmode=require", "postgresql://me@host/a?sslmode=require"),
        ("postgres://host/a?password=***&user=me", "postgresql://host/a?user=me"),
        ("postgresql://host/a?user=me&sslpassword=***", "postgresql://host/a?user=me"),
        ("postgresql:///a?password=***", "postgresql:///a"),
        ("postgresql://me:p@h/a?service=b", "postgresql://me:p@h/a?service=b"),
    ],
)
def test_a_redacted_password_is_left_out_when_the_url_is_read_again(saved, resolved):
    assert resolve_store_url(saved) == resolved


@pytest.mark.parametrize("name", ["plain", "ü ? # % %20 & = :", os.fsdecode(b"no text \xff")])
def test_a_file_is_created_at_exactly_the_path(tmp_path, name):
    path = tmp_path / name / "a.db"
    connection = connect(resolve_store_url(path))
    connection.execute("CREATE TABLE t (a TEXT)")
    connection.close()
    assert path.stat().st_size
    assert sorted(os.listdir(tmp_path)) == [name]
    with pytest.raises(FileNotFoundError, match="there is no store at"):
        connect(resolve_store_url(path.with_name("b.db")), create=False)


def test_an_impossible_path_is_unreachable(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(Unreachable, match="Not a directory|File exists"):
        connect(resolve_store_url(tmp_path / "file" / "runs"))


def test_without_its_driver_postgresql_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.delitem(sys.modules, "trainer.runs.sql.postgres", raising=False)
    with pytest.raises(ImportError) as raised:
        connect("postgresql://host/a")
    assert "entracte[postgres]" in raised.value.__notes__[0]


def test_a_server_that_does_not_answer_is_unreachable_in_time():
    with pytest.raises(Unreachable, match="refused"):
        connect("postgresql://me@127.0.0.1:1/a")


@pytest.mark.parametrize("password", ["hunter/2", "p@ss", "pw%zz", "p w"])
def test_a_url_that_would_be_split_wrongly_is_refused_without_its_password(password):
    pytest.importorskip("psycopg")
    with pytest.raises(ValueError, match=r"cannot take apart: write special characters") as raised:
        connect(f"postgresql://me:{password}@127.0.0.1:1/runs", timeout=0.1)
    assert password not in str(raised.value)
    assert raised.value.__context__ is None


def test_an_odd_setting_of_a_url_is_refused():
    pytest.importorskip("psycopg")
    with pytest.raises(ValueError, match=r"got 'postgresql://me:\*\*\*@h/runs\?foo=1'"):
        connect("postgresql://me:secret@h/runs?foo=1")
