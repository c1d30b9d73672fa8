"""Pictures in folders, one for each class."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import xxhash

from trainer.checks.arguments import describe_value, require_integer
from trainer.checks.paths import to_absolute_path
from trainer.data.adapters.indexed_source import IndexedSource
from trainer.data.adapters.pictures import SUFFIXES, decode_picture
from trainer.data.batches import Batch

WHO = "data.image_folder"


def image_folder(
    directory: str | os.PathLike[str],
    *,
    batch_size: int,
    size: tuple[int, int] | None = None,
    superbatch: int = 4,
    steps_per_epoch: int | None = None,
) -> IndexedSource:
    """Read pictures from a folder that has a folder for each class, `directory/cat/1.png`.

    Pictures are decoded when a step needs them, one superbatch ahead, by Pillow on all cores. Their
    names and sizes identify them: a resumed run continues with the next picture, and does not
    resume with other files.

    Args:
        directory: of the classes; a class may have folders again. Hidden files, and files that are
            no pictures by their ending, are left out.
        batch_size: examples per step, of all processes together.
        size: height and width in pixels, to which all are resized; None: all have one size already.
        superbatch: steps per transfer; larger means fewer dispatches and more memory.
        steps_per_epoch: optimizer steps per epoch of training; None: an epoch is one pass.

    Returns:
        A source of `inputs` float32 `[batch, height, width, 3]` between 0 and 1, and `labels` int32
        `[batch]`, which number the classes in the order of their names: `source.classes`.

    Raises:
        ImportError: Pillow is not installed.
        TypeError: `size` is no pair.
        ValueError: there is no class, a class has no picture, or a setting is below 1; when it is
            read, a picture is broken or of another size than the first.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("cat", "dog"):
    ...         Path(folder, name).mkdir()
    ...         Image.new("RGB", (8, 6)).save(Path(folder, name, "1.png"))
    ...     source = image_folder(folder, batch_size=2)
    ...     source.classes, source.example["inputs"].shape
    (('cat', 'dog'), (2, 6, 8, 3))
    """
    if size is not None:
        if not isinstance(size, list | tuple) or len(size) != 2:
            raise TypeError(
                f"{WHO} takes size as (height, width) in pixels; got {describe_value(size)}"
            )
        height, width = (require_integer("a side in size", side, 1) for side in size)
        size = height, width
    root = to_absolute_path(directory, WHO)
    classes = tuple(sorted(p.name for p in root.iterdir() if p.is_dir() and p.name[0] != "."))
    if not classes:
        raise ValueError(f"{WHO} needs a folder for each class in {root}; got none")
    files: list[Path] = []
    labels: list[int] = []
    identity = xxhash.xxh3_64(f"{classes}".encode())
    for label, name in enumerate(classes):
        found = sorted(p for p in (root / name).rglob("*") if _is_picture(p))
        if not found:
            raise ValueError(
                f"{WHO} needs at least one picture of each class; got none in {root / name}, by "
                f"the endings {', '.join(SUFFIXES)}"
            )
        for file in found:
            line = f"{file.relative_to(root).as_posix()} {file.stat().st_size}\n"
            identity.update(os.fsencode(line))
        files += found
        labels += [label] * len(found)
    numbers, pool = np.array(labels, np.int32), ThreadPoolExecutor(thread_name_prefix="pictures")

    def read(indices: np.ndarray) -> Batch:
        chosen = [files[index] for index in indices.ravel().tolist()]
        pictures = list(pool.map(lambda f: decode_picture(f, size, WHO, str(f)), chosen))
        for file, picture in zip(chosen, pictures, strict=True):
            if picture.shape != pictures[0].shape:
                raise ValueError(
                    f"{WHO} needs pictures of one size; {chosen[0]} has (height, width) "
                    f"{pictures[0].shape[:2]} and {file} has {picture.shape[:2]}: pass "
                    "size=(height, width), to which all are resized"
                )
        inputs = np.stack(pictures).reshape(*indices.shape, *pictures[0].shape)
        return {"inputs": inputs, "labels": numbers[indices]}

    content = f"{len(files)} pictures {size} {identity.hexdigest()}"
    return IndexedSource(
        len(files),
        read,
        content,
        batch_size,
        classes=classes,
        superbatch=superbatch,
        steps_per_epoch=steps_per_epoch,
    )


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.name[0] != "." and path.is_file()
