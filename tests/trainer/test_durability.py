"""Files that are replaced: whole or not at all, and readable by whom others are."""

from __future__ import annotations

import os
import stat
import tempfile

import pytest

from trainer.durability import replacing


@pytest.fixture
def umask():
    """Lets a group read, and others not; puts back what was."""
    before = os.umask(0o027)
    yield
    os.umask(before)


def test_a_file_may_be_read_by_whom_others_are_however_it_is_written(tmp_path, umask):
    def plain(path):
        path.write_text("new")

    def private(path):
        descriptor, made = tempfile.mkstemp(dir=tmp_path)
        os.write(descriptor, b"new")
        os.close(descriptor)
        os.replace(made, path)

    for write in (plain, private):
        file = tmp_path / write.__name__
        with replacing(file) as beside:
            write(beside)
        assert (stat.S_IMODE(file.stat().st_mode), file.read_text()) == (0o640, "new")
    assert len(os.listdir(tmp_path)) == 2


def test_where_writing_fails_the_old_file_stays_alone(tmp_path):
    file = tmp_path / "page"
    file.write_text("old")

    def fail():
        with replacing(file) as beside:
            beside.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert (file.read_text(), os.listdir(tmp_path)) == ("old", ["page"])
