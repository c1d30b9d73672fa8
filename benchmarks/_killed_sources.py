"""Sources of other libraries' data that killed runs read.

All hold the same examples, and shuffle them where they can. Loaders of PyTorch also add random
numbers of PyTorch, NumPy and Python. A library is imported where it is used.
"""

import io
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trainer import data

EXAMPLES, BATCH = 150, 8
"""A pass has 18 whole batches, and a smaller one."""


class Examples(NamedTuple):
    """What the sources hold."""

    inputs: np.ndarray
    """float32 `[examples, 4]`"""
    labels: np.ndarray
    """int32 `[examples]`, of 3 classes"""


MakeSource = Callable[[Path, Examples, int], Any]
"""`(directory, examples, steps per epoch) -> source`; files go into the directory."""


def make_examples() -> Examples:
    """Draw the examples."""
    inputs = np.random.default_rng(0).random((EXAMPLES, 4), np.float32)
    return Examples(inputs, inputs[:, :3].argmax(1).astype(np.int32))


def read_torch(directory: Path, examples: Examples, steps: int) -> Any:
    """Read a `DataLoader` of PyTorch, which is read again up to the place."""
    from torch.utils.data import DataLoader

    loader = DataLoader(_Noisy(examples), batch_size=BATCH, shuffle=True)
    return data.from_torch(loader, superbatch=4, steps_per_epoch=steps)


def read_torchdata(directory: Path, examples: Examples, steps: int) -> Any:
    """Read a `StatefulDataLoader` of torchdata, by its own state."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    loader = StatefulDataLoader(_Noisy(examples), batch_size=BATCH, shuffle=True)
    return data.from_torch(loader, superbatch=4, steps_per_epoch=steps)


class _Noisy:
    """Examples with random numbers of three libraries, as random transforms draw them."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return EXAMPLES

    def __getitem__(self, index: int) -> tuple[Any, int]:
        import torch

        noise = random.random() + np.random.rand() + torch.rand(()).item()
        inputs = self.examples.inputs[index] + np.float32(0.01 * noise)
        return torch.from_numpy(inputs), int(self.examples.labels[index])


def read_datasets(directory: Path, examples: Examples, steps: int) -> Any:
    """Read a `Dataset` of Hugging Face by number."""
    return _from_datasets(_make_dataset(examples), steps)


def read_iterable(directory: Path, examples: Examples, steps: int) -> Any:
    """Read an `IterableDataset` of three shards, by its own state."""
    return _from_datasets(_make_dataset(examples).to_iterable_dataset(num_shards=3), steps)


def read_buffered(directory: Path, examples: Examples, steps: int) -> Any:
    """Read an `IterableDataset` that shuffles in a buffer, which is read again up to the place."""
    dataset = _make_dataset(examples).to_iterable_dataset(num_shards=3)
    return _from_datasets(dataset.shuffle(seed=1, buffer_size=20), steps)


def _make_dataset(examples: Examples) -> Any:
    import datasets

    return datasets.Dataset.from_dict({"x": examples.inputs, "y": examples.labels})


def _from_datasets(dataset: Any, steps: int) -> Any:
    columns = {"inputs": "x", "labels": "y"}
    return data.from_datasets(
        dataset, columns, batch_size=BATCH, superbatch=4, steps_per_epoch=steps
    )


def read_tf(directory: Path, examples: Examples, steps: int) -> Any:
    """Read a `tf.data.Dataset` that shuffles by the run's seed and the pass."""
    import tensorflow

    whole = tensorflow.data.Dataset.from_tensor_slices(tuple(examples))

    def shuffle(seed: int, number: int) -> Any:
        return whole.shuffle(50, seed=seed + number)

    return data.from_tf(shuffle, batch_size=BATCH, superbatch=4, steps_per_epoch=steps)


def read_grain(directory: Path, examples: Examples, steps: int) -> Any:
    """Read a `MapDataset` of Grain, shuffled in every pass."""
    import grain

    dataset = grain.MapDataset.range(EXAMPLES).map(_Pick(examples))
    return data.from_grain(dataset, batch_size=BATCH, superbatch=4, steps_per_epoch=steps)


def read_grain_iterator(directory: Path, examples: Examples, steps: int) -> Any:
    """Read an `IterDataset` of Grain that shuffles in a window, by the state of its iterator."""
    import grain

    def shuffle(seed: int, number: int) -> Any:
        dataset = grain.MapDataset.range(EXAMPLES).map(_Pick(examples)).to_iter_dataset()
        return grain.experimental.WindowShuffleIterDataset(
            dataset, window_size=20, seed=(seed + number) % 2**32
        )

    return data.from_grain(shuffle, batch_size=BATCH, superbatch=4, steps_per_epoch=steps)


class _Pick:
    """Return an example by its number."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples

    def __call__(self, index: int) -> dict[str, Any]:
        return {"inputs": self.examples.inputs[index], "labels": self.examples.labels[index]}


def read_pandas(directory: Path, examples: Examples, steps: int) -> Any:
    """Read a data frame, which is on the device."""
    import pandas

    frame = pandas.DataFrame(examples.inputs, columns=list("abcd")).assign(kind=examples.labels)
    columns = {"inputs": list("abcd"), "labels": "kind"}
    return data.from_pandas(frame, columns, batch_size=BATCH, steps_per_epoch=steps)


def read_pictures(directory: Path, examples: Examples, steps: int) -> Any:
    """Read a folder of pictures of 2 by 2 pixels for each class."""
    from PIL import Image

    for number, (row, label) in enumerate(zip(*examples, strict=True)):
        folder = directory / "pictures" / f"{label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((row.reshape(2, 2) * 255).astype(np.uint8)).save(folder / f"{number}.png")
    return data.image_folder(
        directory / "pictures", batch_size=BATCH, superbatch=4, steps_per_epoch=steps
    )


def read_tars(directory: Path, examples: Examples, steps: int) -> Any:
    """Read four tar files, shuffled in windows of 20 examples."""
    for shard in range(4):
        with tarfile.open(directory / f"{shard}.tar", "w") as tar:
            for number in range(shard, EXAMPLES, 4):
                array = io.BytesIO()
                np.save(array, examples.inputs[number])
                _add(tar, f"{number:03}.npy", array.getvalue())
                _add(tar, f"{number:03}.cls", f"{examples.labels[number]}".encode())
    return data.tar_shards(
        f"{directory}/*.tar", batch_size=BATCH, shuffle=20, superbatch=4, steps_per_epoch=steps
    )


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


SOURCES: dict[str, MakeSource] = {
    "torch": read_torch,
    "torchdata": read_torchdata,
    "datasets": read_datasets,
    "datasets_iterable": read_iterable,
    "datasets_buffered": read_buffered,
    "tf": read_tf,
    "grain": read_grain,
    "grain_iterator": read_grain_iterator,
    "pandas": read_pandas,
    "image_folder": read_pictures,
    "tar_shards": read_tars,
}
"""By name of the program that trains on it."""

LIBRARIES = {
    "torch": "torch.utils.data",
    "torchdata": "torchdata.stateful_dataloader",
    "datasets": "datasets",
    "datasets_iterable": "datasets",
    "datasets_buffered": "datasets",
    "tf": "tensorflow",
    "grain": "grain",
    "grain_iterator": "grain",
    "pandas": "pandas",
    "image_folder": "PIL.Image",
}
"""What the source of a program needs."""


def list_preloaded(program: str) -> list[str]:
    """Return the library to import before processes are forked; not TensorFlow, with threads."""
    library = LIBRARIES.get(program, "tensorflow")
    return [] if library == "tensorflow" else [library]
