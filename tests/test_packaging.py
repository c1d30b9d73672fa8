"""What the wheel and the source distribution hold, and that the wheel works on its own."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "entracte.py")
PACKAGES = ("trainer", "hooks", "models")
BUILD = """
from setuptools import build_meta
build_meta.build_wheel("dist")
build_meta.build_sdist("dist")
"""

THREE_LINES = """
import sys
import jax, numpy as np, optax
import hooks, models, trainer
from trainer import data, losses

x = np.random.default_rng(0).normal(size=(256, 8)).astype(np.float32)
source = data.Arrays({"inputs": x, "labels": (x[:, 0] > 0).astype(np.int32)}, batch_size=32)
task = trainer.supervised(models.mlp(hidden=(8,), classes=2), losses.classification, optax.sgd(0.1))
state, history = trainer.fit(
    task.init(jax.random.key(0), source.example),
    trainer.training(task.step, source),
    epochs=int(sys.argv[1]),
    hooks=hooks.save_checkpoints(sys.argv[2]),
)
print(int(state.epoch), trainer.fingerprint(state))
"""


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """The folder of a wheel and of a source distribution, built as `python -m build` does."""
    if int(importlib.metadata.version("setuptools").partition(".")[0]) < 77:
        pytest.skip("setuptools is older than what builds the wheel")
    folder = tmp_path_factory.mktemp("build")
    for name in SOURCES:
        shutil.copy(ROOT / name, folder / name)
    for name in (*PACKAGES, "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    built = subprocess.run(
        [sys.executable, "-c", BUILD], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder / "dist"


def _list_files():
    """List the files of the packages that belong into a wheel."""
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*") if file.is_file()]
    names = {f.relative_to(ROOT).as_posix() for f in files if "__pycache__" not in f.parts}
    return names | {"entracte.py"}


def test_the_wheel_has_all_files_of_the_packages_and_no_others(dist):
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        (points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert archive.read(points).decode().split() == [
            "[console_scripts]",
            "entracte",
            "=",
            "entracte:main",
        ]
    assert {*names} == _list_files()
    assert {f"{package}/py.typed" for package in PACKAGES} < {*names}
    assert "trainer/commands/setup/project/train.py" in names


def test_the_source_distribution_builds_the_same_wheel(dist):
    (source,) = dist.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert _list_files() | {"pyproject.toml", "README.md", "LICENSE"} <= names
    assert not {name for name in names if name.startswith("tests")}


@pytest.mark.soak
def test_the_wheel_trains_and_resumes_where_nothing_else_is_installed(dist, tmp_path):
    (wheel,) = dist.glob("*.whl")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel]
    subprocess.run(install, check=True, cwd=tmp_path, env=environment, timeout=900)

    def run(*command):
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )

    (tmp_path / "three_lines.py").write_text(THREE_LINES)
    first, resumed, whole = (
        run(python, "three_lines.py", *words) for words in (("2", "a"), ("4", "a"), ("4", "b"))
    )
    assert first.stdout.startswith("2 "), first.stderr
    assert "resuming from epoch 2" in resumed.stderr
    assert resumed.stdout == whole.stdout != first.stdout
    command_line = run(python.with_name("entracte"), "runs")
    assert command_line.returncode == 2
    assert 'pip install "entracte[' in command_line.stderr
