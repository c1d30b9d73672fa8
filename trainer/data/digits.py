"""Handwritten digits that come with scikit-learn, so that nothing is downloaded."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import numpy as np

from trainer.data.arrays import Arrays
from trainer.host.extras import require_extra

VALIDATION_EXAMPLES = 360


def digits(*, batch_size: int = 64) -> tuple[Arrays, Arrays]:
    """Load scikit-learn's 1,797 handwritten digits, always with the same split.

    Args:
        batch_size: examples per step.

    Returns:
        (training, validation) sources of 1,437 and 360 examples: `inputs` float32
        `[batch, 8, 8, 1]` between 0 and 1, `labels` int32 `[batch]` between 0 and 9.

    Raises:
        ImportError: scikit-learn is not installed.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine
    Learning Repository, 1998 (CC BY 4.0), as bundled with scikit-learn.

    >>> train, val = digits(batch_size=64)
    >>> train.size, val.size, train.example["inputs"].shape
    (1437, 360, (64, 8, 8, 1))
    """
    with gzip.open(_find_table(), "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.int32)
    images, labels = table[:, :-1], table[:, -1]
    arrays = {
        "inputs": (images.reshape(-1, 8, 8, 1) / 16).astype(np.float32),
        "labels": np.ascontiguousarray(labels),
    }
    order = np.random.default_rng(0).permutation(len(labels))
    split = len(labels) - VALIDATION_EXAMPLES
    return (
        Arrays({name: array[order[:split]] for name, array in arrays.items()}, batch_size),
        Arrays({name: array[order[split:]] for name, array in arrays.items()}, batch_size),
    )


def _find_table() -> Path:
    """Find the file in scikit-learn without importing it, which takes 0.6 s."""
    with require_extra("examples", "data.digits", "scikit-learn"):
        found = importlib.util.find_spec("sklearn")
        if found is None or found.origin is None:
            raise ImportError("No module named 'sklearn'", name="sklearn")
    return Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
