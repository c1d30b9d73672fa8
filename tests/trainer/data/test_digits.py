"""The digits of scikit-learn, read without importing it."""

import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from trainer import data


def test_the_digits_are_those_of_scikit_learn():
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(1797)
    for source, part in zip(data.digits(batch_size=9), (order[:1437], order[1437:]), strict=True):
        pixels = np.asarray(source.arrays["inputs"])[..., 0] * 16
        np.testing.assert_array_equal(pixels, images[part].reshape(-1, 8, 8))
        np.testing.assert_array_equal(source.arrays["labels"], labels[part])


def test_scikit_learn_is_not_imported():
    script = "import sys; from trainer import data; data.digits(); print('sklearn' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False"]


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match="sklearn") as caught:
        data.digits()
    assert 'pip install "entracte[examples]"' in caught.value.__notes__[0]
