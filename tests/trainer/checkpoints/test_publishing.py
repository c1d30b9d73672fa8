import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.checkpoints import publishing
from trainer.checkpoints.manifest import DamagedCheckpoint

scores = st.dictionaries(st.integers(0, 30), st.none() | st.floats())


def test_a_commit_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
    old = tmp_path / "3"
    old.mkdir()
    stage = publishing.make_staging_folder(tmp_path, 3)
    rename = Path.rename

    def refuse(path, target):
        if path == stage:
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="Input/output"):
        publishing.publish(stage, {"format": 1})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "3.staged"]


@given(scores, st.sampled_from(["min", "max"]))
def test_the_best_is_no_worse_than_any_and_never_nan(scores, mode):
    order = publishing.rank_by_score(scores, mode)
    known = [score for score in scores.values() if score is not None and not math.isnan(score)]
    assert sorted(scores[n] for n in order) == sorted(known)
    if known:
        assert scores[order[0]] == (min if mode == "min" else max)(known)


@given(scores, st.integers(1, 4), st.integers(1, 3), st.none() | st.integers(1, 5))
def test_newest_best_and_every_nth_are_always_retained(scores, keep, keep_best, every):
    kept = publishing.select_retained(
        scores, keep=keep, keep_best=keep_best, mode="min", every=every
    )
    wanted = set(sorted(scores)[-keep:]) | set(publishing.rank_by_score(scores, "min")[:keep_best])
    if every:
        wanted |= {n for n in scores if n % every == 0}
    assert kept == wanted


# 128 times a prime among them: Orbax makes files of equal size, whatever divides the whole.
@pytest.mark.parametrize(
    ("size", "files"), [(64, 1), (2**25, 1), (2**25 + 64, 2), (2**7 * 262147, 2)]
)
def test_bytes_come_back_from_one_or_two_files(tmp_path, size, files):
    data = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    storage = publishing.ArrayStorage()
    storage.write(tmp_path / "a", data)
    written = [path for path in (tmp_path / "a" / "leaves").iterdir() if path.name != ".zarray"]
    assert [path.stat().st_size for path in written] == [size // files] * files
    assert np.array_equal(storage.read(tmp_path / "a", size), data)


def test_a_size_that_is_not_the_manifest_s_is_damage(tmp_path):
    storage = publishing.ArrayStorage()
    storage.write(tmp_path / "a", np.zeros(64, np.uint8))
    with pytest.raises(DamagedCheckpoint, match="leaves/.zarray does not describe 128 plain"):
        storage.read(tmp_path / "a", 128)


def test_a_missing_file_is_damage_and_never_zeros_in_silence(tmp_path):
    storage = publishing.ArrayStorage()
    storage.write(tmp_path / "a", np.ones(64, np.uint8))
    (tmp_path / "a" / "leaves" / "0").unlink()
    with pytest.raises(DamagedCheckpoint, match="leaves/0 is missing"):
        storage.read(tmp_path / "a", 64)


def test_running_out_of_memory_is_no_damage(tmp_path, monkeypatch):
    storage = publishing.ArrayStorage()
    storage.write(tmp_path / "a", np.ones(64, np.uint8))

    def fail(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr(storage._orbax, "restore", fail)
    with pytest.raises(MemoryError):
        storage.read(tmp_path / "a", 64)


def test_more_than_the_machine_holds_is_an_error_and_no_damage(tmp_path, monkeypatch):
    storage = publishing.ArrayStorage()
    storage.write(tmp_path / "a", np.ones(128, np.uint8))
    pages = {"SC_PAGE_SIZE": 64, "SC_PHYS_PAGES": 1}
    monkeypatch.setattr(publishing.os, "sysconf", pages.__getitem__)
    with pytest.raises(MemoryError, match=r"take 128 bytes and this machine has 64 free: restore"):
        storage.read(tmp_path / "a", 128)


def test_an_orbax_that_writes_other_files_is_told_at_the_first_save(tmp_path, monkeypatch):
    monkeypatch.setattr(publishing.array_files, "_METADATA", b"{}")
    with pytest.raises(
        RuntimeError, match=r"orbax-checkpoint 0\..* could not be read back .*_META"
    ):
        publishing.ArrayStorage().write(tmp_path / "a", np.ones(64, np.uint8))


def test_a_disk_that_cannot_be_read_is_damage(tmp_path, monkeypatch):
    storage = publishing.ArrayStorage()
    storage.write(tmp_path / "a", np.ones(64, np.uint8))

    def fail(*arguments):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(publishing.array_files.os, "scandir", fail)
    with pytest.raises(DamagedCheckpoint, match="cannot be read .*Input/output error"):
        storage.read(tmp_path / "a", 64)


def test_a_manifest_that_could_not_be_read_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(publishing.manifest_schema, "MOST_BYTES", 100)
    stage = publishing.make_staging_folder(tmp_path, 3)
    with pytest.raises(ValueError, match=r"manifest of 3 takes \d+ bytes and may take 100: keep"):
        publishing.publish(stage, {"epoch": 3, "config": "x" * 100})
    assert publishing.list_epochs(tmp_path) == []


def test_links_are_listed_whatever_they_point_to_and_are_never_complete(tmp_path):
    (tmp_path / "3").symlink_to(tmp_path / "3")
    (tmp_path / "4").symlink_to(tmp_path / "nothing")
    (tmp_path / "5").symlink_to(tmp_path)
    (tmp_path / "manifest.json").touch()
    assert publishing.list_epochs(tmp_path) == [3, 4, 5]
    assert publishing.list_complete(tmp_path) == []
    with pytest.raises(DamagedCheckpoint, match="commit 3 in .* is a link to"):
        publishing.read_manifest(tmp_path, 3)


def test_orbax_reads_what_is_stored_and_the_manifest_says_what_it_is(tmp_path):
    import orbax.checkpoint as ocp

    data = np.arange(64, dtype=np.uint8)
    publishing.ArrayStorage().write(tmp_path / "a", data)
    tree = ocp.PyTreeCheckpointer().restore(tmp_path / "a")
    assert np.array_equal(tree["leaves"], data)
