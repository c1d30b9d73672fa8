"""Objects in a bucket, on a real server."""

import re
from pathlib import Path

import pytest

from trainer.checkpoints.storage import bucket_path
from trainer.checkpoints.storage.bucket_path import BucketError, BucketPath, parse_bucket_url
from trainer.checkpoints.storage.run_paths import to_run_path


def test_an_object_is_written_read_replaced_and_removed(bucket):
    file = bucket / "a"
    assert (file.exists(), file.read_generation()) == (False, None)
    with pytest.raises(FileNotFoundError, match=re.escape(str(file))):
        file.read_bytes()
    file.write_bytes(b"one")
    first = file.read_generation()
    assert (file.exists(), file.read_bytes()) == (True, b"one")
    assert file.read_with_generation() == (b"one", first)
    file.write_bytes(b"two")
    assert file.read_bytes() == b"two"
    assert file.read_generation() != first
    file.unlink()
    assert not file.exists()
    file.unlink()


def test_only_what_was_read_is_replaced(bucket):
    file = bucket / "a"
    first = file.replace(b"one", None)
    assert first
    assert file.replace(b"other", None) is None
    second = file.replace(b"two", first)
    assert second
    assert file.replace(b"other", first) is None
    assert file.replace(b"two", first) == second  # repeated, since its answer was lost
    assert file.read_bytes() == b"two"
    assert file.replace(None, first) is None
    assert file.replace(None, second)
    assert not file.exists()


def test_only_what_is_below_a_path_is_listed_and_removed(bucket):
    for name in ("a", "a/1", "a/1/x", "a/10", "a0", "ab/1", "b"):
        (bucket / name).write_bytes(b"")
    assert (bucket / "a").list_keys() == ["1", "1/x", "10"]
    assert [path.name for path in (bucket / "a").iterdir()] == ["1", "10"]
    (bucket / "a").remove_all()
    assert bucket.list_keys() == ["a", "a0", "ab/1", "b"]
    assert [*(bucket / "nothing").iterdir()] == []


def test_all_is_removed_but_what_is_kept(bucket):
    for name in ("0", "p_1/0", "p_1/9", "p_10/0", "p_2/0", "p_1", "s/1", "z"):
        (bucket / name).write_bytes(b"")
    bucket.remove_all(but={"s", "p_1"})
    assert bucket.list_keys() == ["p_1/0", "p_1/9", "s/1"]


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("s3://models/runs/digits", BucketPath("s3", "models", "runs/digits")),
        ("gs://a.b-c_d/x/", BucketPath("gs", "a.b-c_d", "x")),
        (Path("s3://models/runs"), BucketPath("s3", "models", "runs")),
        ("/s3/models", Path("/s3/models")),
    ],
)
def test_a_run_is_named_by_a_url_or_a_path(text, path):
    assert to_run_path(text) == path
    assert to_run_path(path) == path


@pytest.mark.parametrize(
    "text",
    [
        "s3://",
        "s3://models",
        "gs://models/",
        "s3://models/a//b",
        "s3://models/../b",
        "s3://UP/a",
        "s3://user:secret@models/a",
        "gs://models/a\nb",
    ],
)
def test_a_malformed_url_is_refused(text):
    with pytest.raises(ValueError, match=r"^save: a run in a bucket is named by s3://BUCKET/PATH"):
        to_run_path(text, "save")


def test_other_urls_are_refused_as_paths():
    assert parse_bucket_url("https://models/a") is None
    with pytest.raises(ValueError, match="only checkpoints may lie in a bucket"):
        to_run_path("https://models/a", "save")


def test_a_bucket_that_is_not_there_is_an_error_with_the_remedy(bucket):
    other = BucketPath("s3", "nowhere", "run")
    with pytest.raises(BucketError, match=r"^s3://nowhere/run: NOT_FOUND: NoSuchBucket.*: see"):
        other.write_bytes(b"")


def test_a_server_that_does_not_answer_is_an_error(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(BucketError, match="no answer within 0.5 seconds: see whether its server"):
        bucket.await_answer(bucket.store.read("a"), seconds=0.5)
    assert bucket_path.ANSWER_SECONDS > 60  # TensorStore tries again for a minute
