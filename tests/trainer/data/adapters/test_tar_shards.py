"""Examples in tar files, as WebDataset writes them."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from trainer import data
from trainer.data.adapters.tar_files import read_examples

EXAMPLES = 11


def add(tar, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def encode(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Eleven examples in three shards, with folders, dots and a name longer than a header."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(3):
        with tarfile.open(folder / f"train-{shard}.tar", "w") as tar:
            tar.add(folder, "a", recursive=False)
            for number in range(4 * shard, min(4 * shard + 4, EXAMPLES)):
                name = f"{'long' * 40 if number == 5 else 'a'}/{number:03}"
                add(tar, f"{name}.seg.npy", b"unused")
                add(tar, f"{name}.NPY", encode(np.full(2, number, np.float32)))
                add(tar, f"{name}.cls", b"%d\n" % number)
    return str(folder / "train-*.tar")


def seen(source, epoch_of, **state):
    return np.concatenate([b["labels"] for b in epoch_of(source.training(), **state)[0]]).tolist()


def test_unshuffled_every_example_is_read_once_in_order(shards, epoch_of):
    source = data.tar_shards(shards, batch_size=4, shuffle=0)
    batches, _ = epoch_of(source.evaluation())
    labels = np.concatenate([batch["labels"][mask] for batch, mask in batches])
    np.testing.assert_array_equal(labels, np.arange(EXAMPLES))
    np.testing.assert_array_equal(batches[0][0]["inputs"], [[0, 0], [1, 1], [2, 2], [3, 3]])


def test_shards_and_windows_are_shuffled_by_seed_and_epoch(shards, epoch_of, begun):
    source = data.tar_shards(shards, batch_size=1, shuffle=5)
    orders = [seen(source, epoch_of, state=begun(*at)) for at in ((0, 0), (1, 0), (0, 1), (0, 0))]
    assert all(sorted(order) == list(range(EXAMPLES)) for order in orders)
    assert orders[0] == orders[3]
    assert len(set(map(tuple, orders))) == 3


@pytest.mark.parametrize("shuffle", [0, 5, 100])
def test_law_5_a_run_resumes_at_the_next_example(shards, resumed_labels, shuffle):
    def make():
        return data.tar_shards(shards, batch_size=2, shuffle=shuffle, steps_per_epoch=3)

    together, apart = resumed_labels(make)
    assert together == apart
    assert sorted(together[:10]) == sorted(set(together[:10]))


def test_resuming_reads_from_the_window_on(shards, monkeypatch):
    source = data.tar_shards(shards, batch_size=2, shuffle=0, steps_per_epoch=3)
    batches = source.batches(0, 0)
    batches.set_state({**batches.get_state(), "shard": 1})
    assert next(batches)["labels"].tolist() == [4, 5]
    state = batches.get_state()
    assert (state["shard"], state["taken"]) == (1, 1)
    again = source.batches(0, 0)
    again.set_state(state)
    assert next(again)["labels"].tolist() == [6, 7]


def test_pictures_and_a_function_decode(tmp_path):
    file = io.BytesIO()
    Image.new("RGB", (3, 2), (255, 0, 0)).save(file, "PNG")
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        add(tar, "1.png", file.getvalue())
        add(tar, "1.json", b"{}")
    source = data.tar_shards([str(tmp_path / "0.tar")], batch_size=1)
    assert source.example["inputs"].shape == (1, 2, 3, 3)

    def decode(parts):
        return {"sizes": np.array([len(parts["png"]), len(parts["json"])])}

    counted = data.tar_shards(str(tmp_path / "0.tar"), batch_size=1, decode=decode)
    assert counted.example["sizes"].tolist() == [[len(file.getvalue()), 2]]


def test_what_cannot_be_read_is_named(tmp_path, shards):
    with pytest.raises(FileNotFoundError, match=r"there is none at .*none-\*"):
        data.tar_shards(str(tmp_path / "none-*.tar"), batch_size=1)
    with tarfile.open(tmp_path / "text.tar", "w") as tar:
        add(tar, "7.txt", b"text")
    with pytest.raises(ValueError, match=r"got \['txt'\]: pass decode=") as raised:
        data.tar_shards(str(tmp_path / "text.tar"), batch_size=1).example  # noqa: B018
    assert "text.tar:7" in raised.value.__notes__[0]
    (tmp_path / "no.tar").write_bytes(b"text" * 200)
    with pytest.raises(ValueError, match=r"no\.tar must be an uncompressed tar file"):
        list(read_examples(tmp_path / "no.tar", 0))
    batches = data.tar_shards(shards, batch_size=1).batches(0, 0)
    place = {**batches.get_state(), "shard": 2, "offset": 10**6, "taken": 1}
    batches.set_state(place)
    with pytest.raises(
        ValueError, match="the 1 examples that were read from byte 1000000 of .*got 0"
    ):
        next(batches)
    with tarfile.open(tmp_path / "sizes.tar", "w") as tar:
        add(tar, "1.npy", encode(np.zeros(2)))
        add(tar, "2.npy", encode(np.zeros(3)))
    with pytest.raises(ValueError, match=r"sizes\.tar:1 has .*\(2,\).*sizes\.tar:2 has .*\(3,\)"):
        data.tar_shards(str(tmp_path / "sizes.tar"), batch_size=2, shuffle=0).example  # noqa: B018
    other = data.tar_shards(shards, batch_size=1, shuffle=7).batches(0, 0)
    with pytest.raises(
        ValueError, match="original files and windows, 3 shards .*shuffle=1000; got"
    ):
        other.set_state(place)
