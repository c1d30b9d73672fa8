import json
import os

import numpy as np
import pytest

from trainer.checkpoints import array_storage
from trainer.checkpoints.array_storage import check_array_files, load_arrays, save_arrays
from trainer.checkpoints.manifest import DamagedCheckpoint


# 128 times a prime among them: Orbax makes files of equal size, whatever divides the whole.
@pytest.mark.parametrize(
    ("size", "files"), [(64, 1), (2**25, 1), (2**25 + 64, 2), (2**7 * 262147, 2)]
)
def test_bytes_are_read_back_from_one_or_two_files(tmp_path, size, files):
    data = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    save_arrays(tmp_path / "a", data)
    written = [path for path in (tmp_path / "a" / "leaves").iterdir() if path.name != ".zarray"]
    assert [path.stat().st_size for path in written] == [size // files] * files
    assert np.array_equal(load_arrays(tmp_path / "a", size), data)


def test_a_size_other_than_the_manifest_s_is_damage(tmp_path):
    save_arrays(tmp_path / "a", np.zeros(64, np.uint8))
    with pytest.raises(DamagedCheckpoint, match="leaves/.zarray does not describe 128 plain"):
        load_arrays(tmp_path / "a", 128)


def test_a_missing_file_is_damage_and_not_read_as_zeros(tmp_path):
    save_arrays(tmp_path / "a", np.ones(64, np.uint8))
    (tmp_path / "a" / "leaves" / "0").unlink()
    with pytest.raises(DamagedCheckpoint, match="leaves/0 is missing"):
        load_arrays(tmp_path / "a", 64)


def test_running_out_of_memory_is_no_damage(tmp_path, monkeypatch):
    save_arrays(tmp_path / "a", np.ones(64, np.uint8))

    def fail(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr(array_storage.ocp.PyTreeCheckpointHandler, "restore", fail)
    with pytest.raises(MemoryError):
        load_arrays(tmp_path / "a", 64)


def test_more_bytes_than_free_memory_are_an_error_and_no_damage(tmp_path, monkeypatch):
    save_arrays(tmp_path / "a", np.ones(128, np.uint8))
    pages = {"SC_PAGE_SIZE": 64, "SC_PHYS_PAGES": 1}
    monkeypatch.setattr(array_storage.os, "sysconf", pages.__getitem__)
    with pytest.raises(MemoryError, match=r"take 128 bytes and this machine has 64 free: restore"):
        load_arrays(tmp_path / "a", 128)


def test_an_orbax_that_writes_other_files_is_reported_at_the_first_save(tmp_path, monkeypatch):
    monkeypatch.setattr(array_storage, "_METADATA", b"{}")
    with pytest.raises(
        RuntimeError, match=r"orbax-checkpoint 0\..* could not be read back .*_META"
    ):
        save_arrays(tmp_path / "a", np.ones(64, np.uint8))


def test_a_disk_that_cannot_be_read_is_damage(tmp_path, monkeypatch):
    save_arrays(tmp_path / "a", np.ones(64, np.uint8))

    def fail(*arguments):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(array_storage.os, "scandir", fail)
    with pytest.raises(DamagedCheckpoint, match="cannot be read .*Input/output error"):
        load_arrays(tmp_path / "a", 64)


def test_orbax_reads_what_is_stored_and_the_manifest_says_what_it_is(tmp_path):
    import orbax.checkpoint as ocp

    data = np.arange(64, dtype=np.uint8)
    save_arrays(tmp_path / "a", data)
    tree = ocp.PyTreeCheckpointer().restore(tmp_path / "a")
    assert np.array_equal(tree["leaves"], data)


@pytest.fixture
def arrays(tmp_path):
    """A folder of 64 bytes, as it is written."""
    save_arrays(tmp_path / "arrays", np.ones(64, np.uint8))
    check_array_files(tmp_path / "arrays", 64)
    return tmp_path / "arrays"


SPOILED = {
    "arrays is missing": lambda path: path.rename(path.with_name("elsewhere")),
    "arrays/leaves is missing": lambda path: (path / "leaves").rename(path.with_name("elsewhere")),
    "arrays holds 'more', which is no part of it": lambda path: (path / "more").touch(),
    "leaves/0 has 63 bytes instead of 64": lambda path: os.truncate(path / "leaves/0", 63),
    "leaves/0 is missing": lambda path: (path / "leaves/0").unlink(),
    "leaves/.zarray is missing": lambda path: (path / "leaves/.zarray").unlink(),
    "leaves holds '1', which": lambda path: (path / "leaves/1").write_bytes(bytes(64)),
    "_METADATA has 2 bytes instead": lambda path: (path / "_METADATA").write_text("{}"),
}


@pytest.mark.parametrize("said", SPOILED)
def test_an_error_names_the_difference(arrays, said):
    SPOILED[said](arrays)
    with pytest.raises(DamagedCheckpoint, match=said):
        check_array_files(arrays, 64)


@pytest.mark.parametrize("name", [".DS_Store", "._0", "leaves/.nfs0001"])
def test_files_of_file_browsers_are_no_damage_but_a_link_is(arrays, name):
    (arrays / name).touch()
    check_array_files(arrays, 64)
    (arrays / name).unlink()
    (arrays / name).symlink_to(arrays / "_METADATA")
    with pytest.raises(DamagedCheckpoint, match="which is no part of it"):
        check_array_files(arrays, 64)


@pytest.mark.parametrize("name", ["", "_METADATA", "leaves", "leaves/.zarray", "leaves/0"])
def test_links_are_refused_even_to_right_files(arrays, tmp_path, name):
    path = arrays / name
    aside = tmp_path / "aside"
    path.rename(aside)
    path.symlink_to(aside)
    with pytest.raises(DamagedCheckpoint, match="a link"):
        check_array_files(arrays, 64)


@pytest.mark.parametrize("size", [0, 32, 63, 65, 128, 2**62])
def test_another_size_is_refused(arrays, size):
    with pytest.raises(
        DamagedCheckpoint, match=f"leaves/.zarray does not describe {size} plain bytes"
    ):
        check_array_files(arrays, size)


def test_more_than_two_files_are_refused(arrays):
    def describe(files):
        content = json.loads((arrays / "leaves/.zarray").read_text())
        content["chunks"] = [64 // files]
        text = json.dumps(content, separators=(",", ":"))
        (arrays / "leaves/.zarray").write_text(text)
        for number in range(files):
            (arrays / "leaves" / str(number)).write_bytes(bytes(64 // files))

    describe(2)
    check_array_files(arrays, 64)
    describe(4)
    with pytest.raises(DamagedCheckpoint, match="in 2 files at most"):
        check_array_files(arrays, 64)
