"""What a manifest says of shared files: every lie is damage, and no file elsewhere is opened."""

from __future__ import annotations

import copy

import jax
import numpy as np
import pytest

from trainer import Checkpoints, TrainState
from trainer.checkpoints import DamagedCheckpoint, manifest, manifest_schema

ARRAYS = {name: np.full(2**14, number, np.float32) for number, name in enumerate("uvw")}
STATE = {"params": ARRAYS, "model_state": {"x": np.ones(2, np.float32)}}


def make():
    """A state of three arrays that are large enough to share."""
    return TrainState.create(**STATE, rng=jax.random.key(0))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run whose checkpoint refers to a file, and the manifest."""
    run = tmp_path_factory.mktemp("run")
    with Checkpoints(run) as checkpoints:
        for _ in range(2):
            checkpoints.save(make())
        checkpoints.wait()
        return run, checkpoints.manifest(0)


def find_piece(content, name):
    """Return the piece of an array in a manifest."""
    (row,) = (row for row in content["leaves"][""] if row["path"] == f"params/{name}")
    return row["pieces"][0]


def set_piece(**fields):
    return lambda content, file: find_piece(content, "v").update(fields)


def set_files(change):
    return lambda content, file: content.update(files=change(file))


LIES = {
    "files that are none": set_files(lambda file: [file]),
    "no files": set_files(lambda file: None),
    "of another process": set_files(lambda file: {file.replace("_0.", "_1."): 2**20}),
    "outside": set_files(lambda file: {f"../{file}": 2**20}),
    "of no save": set_files(lambda file: {"process_0.tmp": 2**20}),
    "a negative size": set_files(lambda file: {file: -1}),
    "a size that is none": set_files(lambda file: {file: "2"}),
    "too small a size": set_files(lambda file: {file: 2**16}),
    "no name": set_piece(file=None),
    "an empty name": set_piece(file=""),
    "a name of a list": set_piece(file=["process_0"]),
    "a file not listed": set_piece(file="process_0.9.ab-1"),
    "the place of another piece": set_piece(offset=0),
    "a place that is none": set_piece(offset=None),
    "a place between": set_piece(offset=2**16 + 1),
    "a negative place": set_piece(offset=-64),
    "a place behind the end": set_piece(offset=2**20),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_about_shared_files_is_damage(saved, lie):
    _, honest = saved
    manifest_schema.check_manifest(honest)
    content = copy.deepcopy(honest)
    LIES[lie](content, *honest["files"])
    with pytest.raises(DamagedCheckpoint, match="cannot be"):
        manifest_schema.check_manifest(content)


def test_a_link_in_the_place_of_a_shared_file_is_not_followed(saved, tmp_path):
    run, content = saved
    (name,) = content["files"]
    file = run / "checkpoints/0/arrays" / name
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with (
        pytest.raises(DamagedCheckpoint, match=f"{name} is a link and no file"),
        Checkpoints(run, read_only=True) as checkpoints,
    ):
        checkpoints.restore(make())
    file.unlink()
    (tmp_path / "elsewhere").rename(file)


def test_a_size_that_is_not_the_files_is_damage(saved):
    run, content = saved
    file = run / "checkpoints/0/manifest.json"
    honest = file.read_bytes()
    longer = {name: size + 64 for name, size in content["files"].items()}
    file.write_bytes(manifest.encode_manifest(content | {"files": longer}))
    with (
        pytest.raises(DamagedCheckpoint, match=r"has \d+ bytes instead of"),
        Checkpoints(run, read_only=True) as checkpoints,
    ):
        checkpoints.restore(make())
    file.write_bytes(honest)
