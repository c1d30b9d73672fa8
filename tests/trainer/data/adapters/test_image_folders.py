"""Pictures in folders by class."""

import sys

import numpy as np
import pytest
from PIL import Image

from trainer import data


@pytest.fixture
def folder(tmp_path):
    """Ten pictures of two classes; each has the colour of its number."""
    for number in range(10):
        place = tmp_path / ("dog" if number % 2 else "cat") / f"{number}.png"
        place.parent.mkdir(exist_ok=True)
        Image.new("RGB", (6, 4), (number, 0, 255)).save(place)
    (tmp_path / "cat" / "notes.txt").write_text("no picture")
    (tmp_path / ".cache").mkdir()
    return tmp_path


def read(folder, **settings):
    return data.image_folder(folder, **{"batch_size": 4, **settings})


def test_classes_are_folders_sorted_by_name(folder):
    source = read(folder)
    batches = list(source)
    assert source.classes == ("cat", "dog")
    assert [len(batch["labels"]) for batch in batches] == [4, 4, 2]
    assert np.concatenate([batch["labels"] for batch in batches]).tolist() == [0] * 5 + [1] * 5
    inputs = np.concatenate([batch["inputs"] for batch in batches])
    assert inputs.shape == (10, 4, 6, 3)
    assert inputs.dtype == np.float32
    np.testing.assert_array_equal(inputs[:, 0, 0, 0] * 255, [0, 2, 4, 6, 8, 1, 3, 5, 7, 9])
    assert (inputs[..., 2] == 1).all()


def test_pictures_of_several_sizes_are_resized(folder):
    Image.new("L", (9, 5), 255).save(folder / "cat" / "z.png")
    with pytest.raises(ValueError, match=r"z\.png has \(5, 9\).*pass size=\(height, width\)"):
        list(read(folder))
    source = read(folder, size=(3, 5), batch_size=11)
    assert source.example["inputs"].shape == (11, 3, 5, 3)
    assert (source.example["inputs"][5] == 1).all()


def test_a_broken_picture_is_named(folder):
    broken = folder / "dog" / "3.png"
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"decode .*dog/3\.png; Pillow says: .*remove it"):
        list(read(folder))


def test_folders_without_pictures_are_an_error(folder, tmp_path):
    (folder / "fox").mkdir()
    with pytest.raises(ValueError, match=r"one picture of each class; got none in .*fox"):
        read(folder)
    with pytest.raises(TypeError, match=r"size as \(height, width\) in pixels; got 8"):
        read(folder, size=8)
    with pytest.raises(ValueError, match="a folder for each class in .*got none"):
        read(folder / "fox")


def test_law_5_a_run_resumes_at_the_next_picture(folder, resumed_labels, epoch_of, begun):
    together, apart = resumed_labels(lambda: read(folder, batch_size=3, steps_per_epoch=2))
    assert together == apart
    assert together[:9] != sorted(together[:9])
    _, position = epoch_of(read(folder, steps_per_epoch=1).training())
    Image.new("RGB", (6, 4)).save(folder / "dog" / "99.png")
    with pytest.raises(ValueError, match="the run began with other data"):
        epoch_of(read(folder, steps_per_epoch=1).training(), position)


def test_pictures_mix_with_other_sources(folder):
    arrays = {"inputs": np.zeros((9, 4, 6, 3), np.float32), "labels": np.zeros(9, np.int32)}
    dark = data.MemoryMap(arrays, 4)
    mixed = data.mixture({"bright": read(folder), "dark": dark}, weights={"bright": 1, "dark": 1})
    assert mixed.example["inputs"].shape == (4, 4, 6, 3)


def test_without_pillow_the_error_names_the_extra(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError) as raised:
        list(read(folder))
    assert 'pip install "entracte[images]"' in raised.value.__notes__[0]
