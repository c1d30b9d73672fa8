"""A file to append to is at its path when a checkpoint follows, or there is an error."""

from __future__ import annotations

import errno
import os

import pytest

from hooks.writers.appending import AppendFile


@pytest.fixture
def file(tmp_path):
    file = AppendFile(tmp_path / "a.txt", "a writer")
    file.append(b"first ")
    return file


def test_a_deleted_file_is_written_again_and_appended_to(file, caplog):
    file.path.unlink()
    file.append(b"second ")
    file.flush()
    assert file.path.read_bytes() == b"first second "
    (said,) = caplog.messages
    assert (
        "a.txt was deleted while a writer was writing it: it was written again, with all its"
        in said
    )
    file.append(b"third")
    file.close()
    assert file.path.read_bytes() == b"first second third"
    assert os.listdir(file.path.parent) == ["a.txt"]


def test_a_moved_file_is_written_again_and_the_moved_one_stays(file):
    file.path.rename(file.path.with_name("moved"))
    file.flush()
    file.append(b"second")
    assert file.path.read_bytes() == b"first second"
    assert file.path.with_name("moved").read_bytes() == b"first "


def test_a_missing_folder_is_an_error_with_a_remedy(file):
    file.path.unlink()
    file.path.parent.rmdir()
    with pytest.raises(FileNotFoundError) as raised:
        file.flush()
    assert "leave a run's directory alone" in raised.value.__notes__[0]


@pytest.mark.parametrize("link", [False, True])
def test_a_file_in_its_place_is_unchanged(file, link):
    other = file.path.with_name("other")
    other.write_bytes(b"theirs")
    file.path.unlink()
    file.path.symlink_to(other) if link else other.rename(file.path)
    with pytest.raises(OSError, match="was replaced by another file while a writer") as raised:
        file.flush()
    assert raised.value.filename == str(file.path)
    assert file.path.read_bytes() == b"theirs"


@pytest.mark.parametrize("later", [b"", b"second, which is longer"])
def test_a_truncated_file_is_noticed_also_after_more_was_appended(file, later):
    os.truncate(file.path, 2)
    file.append(later)
    with pytest.raises(OSError, match="was cut short, by 4 bytes,"):
        file.flush()


def test_a_full_disk_is_named_with_the_file_and_leaves_no_half_line(file, monkeypatch):
    before, write = file.path.read_bytes(), os.write

    def full(descriptor, data):
        if len(data) < 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[:3])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match=f"6 bytes are needed and .* are free: '{file.path}'"):
        file.append(b"three\n")
    assert file.path.read_bytes() == before


def test_others_may_append(file):
    with file.path.open("ab") as other:
        other.write(b"more ")
    file.append(b"second")
    file.flush()
    assert file.path.read_bytes() == b"first more second"


def test_closing_checks_once_more_and_closes_the_descriptor(file):
    file.path.write_bytes(b"")
    with pytest.raises(OSError, match="cut short"):
        file.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        file.append(b"more")
