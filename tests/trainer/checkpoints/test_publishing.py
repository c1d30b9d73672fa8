from pathlib import Path

import pytest

from trainer.checkpoints import publishing
from trainer.checkpoints.arrays.damage import DamagedCheckpoint
from trainer.checkpoints.publishing import RunMemory


def test_a_checkpoint_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
    old = tmp_path / "3"
    old.mkdir()
    stage = tmp_path / "3.staged"
    stage.mkdir()
    rename = Path.rename

    def refuse(path, target):
        if path == stage:
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="Input/output"):
        publishing.publish(stage, 3, {"format": 1}, RunMemory().named)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "3.staged"]


def test_a_manifest_too_large_to_be_read_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(publishing.manifest_schema, "MOST_BYTES", 100)
    stage = tmp_path / "3.staged"
    stage.mkdir()
    with pytest.raises(ValueError, match=r"manifest of 3 takes \d+ bytes and may take 100: keep"):
        publishing.publish(stage, 3, {"epoch": 3, "config": "x" * 100}, RunMemory().named)
    assert publishing.list_epochs(tmp_path) == []


def test_links_are_listed_whatever_they_point_to_and_are_never_complete(tmp_path):
    (tmp_path / "3").symlink_to(tmp_path / "3")
    (tmp_path / "4").symlink_to(tmp_path / "nothing")
    (tmp_path / "5").symlink_to(tmp_path)
    (tmp_path / "manifest.json").touch()
    assert publishing.list_epochs(tmp_path) == [3, 4, 5]
    assert publishing.list_complete_epochs(tmp_path) == []
    with pytest.raises(DamagedCheckpoint, match="checkpoint 3 in .* is a link to"):
        publishing.read_manifest(tmp_path, 3)
