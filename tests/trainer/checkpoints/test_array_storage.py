import numpy as np
import pytest

from trainer.checkpoints import array_files
from trainer.checkpoints.array_storage import ArrayStorage
from trainer.checkpoints.manifest import DamagedCheckpoint


# 128 times a prime among them: Orbax makes files of equal size, whatever divides the whole.
@pytest.mark.parametrize(
    ("size", "files"), [(64, 1), (2**25, 1), (2**25 + 64, 2), (2**7 * 262147, 2)]
)
def test_bytes_are_read_back_from_one_or_two_files(tmp_path, size, files):
    data = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    storage = ArrayStorage()
    storage.write(tmp_path / "a", data)
    written = [path for path in (tmp_path / "a" / "leaves").iterdir() if path.name != ".zarray"]
    assert [path.stat().st_size for path in written] == [size // files] * files
    assert np.array_equal(storage.read(tmp_path / "a", size), data)


def test_a_size_other_than_the_manifest_s_is_damage(tmp_path):
    storage = ArrayStorage()
    storage.write(tmp_path / "a", np.zeros(64, np.uint8))
    with pytest.raises(DamagedCheckpoint, match="leaves/.zarray does not describe 128 plain"):
        storage.read(tmp_path / "a", 128)


def test_a_missing_file_is_damage_and_not_read_as_zeros(tmp_path):
    storage = ArrayStorage()
    storage.write(tmp_path / "a", np.ones(64, np.uint8))
    (tmp_path / "a" / "leaves" / "0").unlink()
    with pytest.raises(DamagedCheckpoint, match="leaves/0 is missing"):
        storage.read(tmp_path / "a", 64)


def test_running_out_of_memory_is_no_damage(tmp_path, monkeypatch):
    storage = ArrayStorage()
    storage.write(tmp_path / "a", np.ones(64, np.uint8))

    def fail(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr(storage._orbax, "restore", fail)
    with pytest.raises(MemoryError):
        storage.read(tmp_path / "a", 64)


def test_more_bytes_than_free_memory_are_an_error_and_no_damage(tmp_path, monkeypatch):
    storage = ArrayStorage()
    storage.write(tmp_path / "a", np.ones(128, np.uint8))
    pages = {"SC_PAGE_SIZE": 64, "SC_PHYS_PAGES": 1}
    monkeypatch.setattr(array_files.os, "sysconf", pages.__getitem__)
    with pytest.raises(MemoryError, match=r"take 128 bytes and this machine has 64 free: restore"):
        storage.read(tmp_path / "a", 128)


def test_an_orbax_that_writes_other_files_is_reported_at_the_first_save(tmp_path, monkeypatch):
    monkeypatch.setattr(array_files, "_METADATA", b"{}")
    with pytest.raises(
        RuntimeError, match=r"orbax-checkpoint 0\..* could not be read back .*_META"
    ):
        ArrayStorage().write(tmp_path / "a", np.ones(64, np.uint8))


def test_a_disk_that_cannot_be_read_is_damage(tmp_path, monkeypatch):
    storage = ArrayStorage()
    storage.write(tmp_path / "a", np.ones(64, np.uint8))

    def fail(*arguments):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(array_files.os, "scandir", fail)
    with pytest.raises(DamagedCheckpoint, match="cannot be read .*Input/output error"):
        storage.read(tmp_path / "a", 64)


def test_orbax_reads_what_is_stored_and_the_manifest_says_what_it_is(tmp_path):
    import orbax.checkpoint as ocp

    data = np.arange(64, dtype=np.uint8)
    ArrayStorage().write(tmp_path / "a", data)
    tree = ocp.PyTreeCheckpointer().restore(tmp_path / "a")
    assert np.array_equal(tree["leaves"], data)
