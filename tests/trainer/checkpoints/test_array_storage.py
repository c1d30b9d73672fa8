import os

import numpy as np
import pytest

from trainer.checkpoints.arrays import array_storage
from trainer.checkpoints.arrays.array_storage import load_arrays, save_arrays
from trainer.checkpoints.arrays.damage import DamagedCheckpoint


# More than a chunk, and more than what pays off a second thread, among them.
@pytest.mark.parametrize("size", [0, 64, 2**24 + 64, 2**25 + 64])
def test_bytes_are_read_back(tmp_path, size):
    data = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    save_arrays(tmp_path / "a", data)
    assert (tmp_path / "a").stat().st_size == size
    assert np.array_equal(load_arrays(tmp_path / "a", size, [(0, size)]), data)


def test_only_the_ranges_are_read(tmp_path):
    save_arrays(tmp_path / "a", np.ones(256, np.uint8))
    found = load_arrays(tmp_path / "a", 256, [(0, 64), (64, 128), (192, 256)])
    assert found.reshape(4, 64).sum(axis=1).tolist() == [64, 64, 0, 64]


def test_running_out_of_memory_is_no_damage(tmp_path, monkeypatch):
    save_arrays(tmp_path / "a", np.ones(64, np.uint8))

    def fail(*arguments, **options):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(array_storage.mmap, "mmap", fail)
    with pytest.raises(MemoryError):
        load_arrays(tmp_path / "a", 64, [(0, 64)])


def test_more_bytes_than_free_memory_are_an_error_and_no_damage(tmp_path, monkeypatch):
    save_arrays(tmp_path / "a", np.ones(128, np.uint8))
    pages = {"SC_PAGE_SIZE": 64, "SC_PHYS_PAGES": 1}
    monkeypatch.setattr(array_storage.os, "sysconf", pages.__getitem__)
    with pytest.raises(MemoryError, match=r"take 128 bytes and this machine has 64 free: restore"):
        load_arrays(tmp_path / "a", 128, [(0, 128)])
    load_arrays(tmp_path / "a", 128, [(64, 128)])


def test_a_disk_that_cannot_be_read_is_damage(tmp_path, monkeypatch):
    save_arrays(tmp_path / "a", np.ones(64, np.uint8))

    def fail(*arguments):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(array_storage.os, "preadv", fail)
    with pytest.raises(DamagedCheckpoint, match="cannot be read .*Input/output error"):
        load_arrays(tmp_path / "a", 64, [(0, 64)])


SPOILED = {
    "arrays/0 is missing": lambda file: file.unlink(),
    "arrays is missing": lambda file: file.parent.rename(file.parent.with_name("elsewhere")),
    "arrays/0 has 63 bytes instead of 64": lambda file: os.truncate(file, 63),
    "arrays/0 is a named pipe": lambda file: (file.unlink(), os.mkfifo(file)),
    "arrays/0 is a link": lambda file: file.symlink_to(file.rename(file.with_name("aside"))),
    "arrays is a link": lambda file: file.parent.symlink_to(
        file.parent.rename(file.parent.with_name("aside"))
    ),
}


@pytest.mark.parametrize("said", SPOILED)
def test_another_file_is_damage(tmp_path, said):
    file = tmp_path / "arrays" / "0"
    file.parent.mkdir()
    save_arrays(file, np.ones(64, np.uint8))
    SPOILED[said](file)
    with pytest.raises(DamagedCheckpoint, match=said):
        load_arrays(file, 64, [(0, 64)])
