"""Paths that users pass: what they become, and which are refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trainer.checks.paths import to_absolute_path


def test_a_path_becomes_absolute_and_no_link_is_resolved(tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    found = to_absolute_path("link/run")
    monkeypatch.chdir("/")
    assert found == tmp_path / "link" / "run"
    assert to_absolute_path(found) == found


def test_a_leading_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert to_absolute_path("~/run") == to_absolute_path(Path("~") / "run") == tmp_path / "run"
    assert to_absolute_path("/a/~/b~") == Path("/a/~/b~")
    with pytest.raises(ValueError, match=r"no user of this name .*'./~nobody-here/run'"):
        to_absolute_path("~nobody-here/run")


@pytest.mark.parametrize("url", ["s3://bucket/run", "gs://b/r", "hf+x://b/r", "file:///b/r"])
def test_a_url_is_refused_also_behind_a_path(url):
    for given in (url, Path(url)):  # which makes one slash of two
        with pytest.raises(ValueError, match=r"beat needs a path on a local file system; got"):
            to_absolute_path(given, "beat")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("s3://bucket/run", "got the URL 's3://bucket/run': .*mount it .* './s3:/bucket/run'"),
        ("file:///home/run", "give the path itself, '/home/run'$"),
        ("ftp://me:secret@host/run", r"'ftp://\*\*\*@host/run'"),
        ("", "got an empty one"),
    ],
)
def test_a_refusal_gives_a_remedy_and_no_password(given, words):
    with pytest.raises(ValueError, match=words) as caught:
        to_absolute_path(given)
    assert "secret" not in str(caught.value)


def test_a_path_that_looks_like_a_url_is_accepted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a:b", "run: 12/3", "./s3:/bucket", "c:/x", "12:30/run"):
        assert to_absolute_path(name) == tmp_path / name


def test_bytes_and_numbers_are_not_paths():
    with pytest.raises(TypeError, match=r"as text; got b'run'"):
        to_absolute_path(b"run")
    with pytest.raises(TypeError, match=r"needs a path .*; got 3"):
        to_absolute_path(3)
    assert os.fspath(to_absolute_path("/run")) == "/run"
