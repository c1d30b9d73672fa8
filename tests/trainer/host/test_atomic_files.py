"""Files that are replaced: whole or not at all, and readable by whom others are."""

from __future__ import annotations

import errno
import os
import stat
import tempfile

import pytest

from trainer.host.atomic_files import atomic_replace, explain_disk_full, write_durably


@pytest.fixture
def umask():
    """Lets a group read, and others not; puts back what was."""
    before = os.umask(0o027)
    yield
    os.umask(before)


def test_a_replaced_file_has_usual_permissions_whatever_wrote_it(tmp_path, umask):
    def plain(path):
        path.write_text("new")

    def private(path):
        descriptor, made = tempfile.mkstemp(dir=tmp_path)
        os.write(descriptor, b"new")
        os.close(descriptor)
        os.replace(made, path)

    for write in (plain, private):
        file = tmp_path / write.__name__
        with atomic_replace(file) as beside:
            write(beside)
        assert (stat.S_IMODE(file.stat().st_mode), file.read_text()) == (0o640, "new")
    assert len(os.listdir(tmp_path)) == 2


def test_if_writing_fails_only_the_old_file_stays(tmp_path):
    file = tmp_path / "page"
    file.write_text("old")

    def fail():
        with atomic_replace(file) as beside:
            beside.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert (file.read_text(), os.listdir(tmp_path)) == ("old", ["page"])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_one_error_with_file_and_free_space(tmp_path, number):
    file = tmp_path / "a"
    said = rf"^\[Errno {number}\] .*: 2,000 bytes are needed and \d[\d,]* are free.*: '{file}'$"
    with (
        pytest.raises(OSError, match=said),
        explain_disk_full(2000, tmp_path),  # the whole counts, and the file of the part
        explain_disk_full(1000, file),
    ):
        raise OSError(number, "full")


def test_a_full_disk_names_the_replaced_file(tmp_path):
    file = tmp_path / "page"

    def fail():
        with atomic_replace(file):
            raise OSError(errno.ENOSPC, "full")  # as Python raises it of a write

    with pytest.raises(OSError, match=rf"\d bytes are free: '{file}'$"):
        fail()
    assert os.listdir(tmp_path) == []
    with (
        pytest.raises(OSError, match="1,000 bytes are needed"),
        explain_disk_full(None, file),  # what is known within is kept
        explain_disk_full(1000, file),
    ):
        raise OSError(errno.ENOSPC, "full")


def test_a_new_file_is_written_completely_and_none_is_overwritten(tmp_path):
    file = tmp_path / "a"
    write_durably(file, memoryview(b"abc"))
    assert file.read_bytes() == b"abc"
    with pytest.raises(FileExistsError):
        write_durably(file, b"d")
