"""A run whose checkpoints are damaged by tests."""

import shutil

import pytest
from forging import save


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """The files of checkpoints 1 and 2, to copy."""
    run = tmp_path_factory.mktemp("original")
    save(run, 1, 2)
    return run


@pytest.fixture
def run(original, tmp_path):
    """A run with checkpoints 1 and 2, for tests to damage."""
    return shutil.copytree(original, tmp_path / "run")
