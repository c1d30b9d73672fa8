import json
import os

import numpy as np
import pytest

from trainer.checkpoints import array_files
from trainer.checkpoints.array_storage import ArrayStorage
from trainer.checkpoints.manifest import DamagedCheckpoint


@pytest.fixture
def arrays(tmp_path):
    """A folder of 64 bytes, as it is written."""
    ArrayStorage().write(tmp_path / "arrays", np.ones(64, np.uint8))
    array_files.check_array_files(tmp_path / "arrays", 64)
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
        array_files.check_array_files(arrays, 64)


@pytest.mark.parametrize("name", [".DS_Store", "._0", "leaves/.nfs0001"])
def test_files_of_file_browsers_are_no_damage_but_a_link_is(arrays, name):
    (arrays / name).touch()
    array_files.check_array_files(arrays, 64)
    (arrays / name).unlink()
    (arrays / name).symlink_to(arrays / "_METADATA")
    with pytest.raises(DamagedCheckpoint, match="which is no part of it"):
        array_files.check_array_files(arrays, 64)


@pytest.mark.parametrize("name", ["", "_METADATA", "leaves", "leaves/.zarray", "leaves/0"])
def test_links_are_refused_even_to_right_files(arrays, tmp_path, name):
    path = arrays / name
    aside = tmp_path / "aside"
    path.rename(aside)
    path.symlink_to(aside)
    with pytest.raises(DamagedCheckpoint, match="a link"):
        array_files.check_array_files(arrays, 64)


@pytest.mark.parametrize("size", [0, 32, 63, 65, 128, 2**62])
def test_another_size_is_refused(arrays, size):
    with pytest.raises(
        DamagedCheckpoint, match=f"leaves/.zarray does not describe {size} plain bytes"
    ):
        array_files.check_array_files(arrays, size)


def test_more_than_two_files_are_refused(arrays):
    def describe(files):
        content = json.loads((arrays / "leaves/.zarray").read_text())
        content["chunks"] = [64 // files]
        text = json.dumps(content, separators=(",", ":"))
        (arrays / "leaves/.zarray").write_text(text)
        for number in range(files):
            (arrays / "leaves" / str(number)).write_bytes(bytes(64 // files))

    describe(2)
    array_files.check_array_files(arrays, 64)
    describe(4)
    with pytest.raises(DamagedCheckpoint, match="in 2 files at most"):
        array_files.check_array_files(arrays, 64)
