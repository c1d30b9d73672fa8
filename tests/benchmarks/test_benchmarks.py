"""Every benchmark runs, and writes its results where it is asked to."""

import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import _crashing
import pytest
from running import QUICKLY, Script

from trainer.checkpoints import staging

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NAMES = sorted(file.stem for file in BENCHMARKS.glob("[a-z]*.py"))
DIFFERENCE = "beyond"
"""Part of the names of differences of two times, which noise can make negative."""


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_imports_and_asks_a_question(name):
    benchmark = importlib.import_module(name)
    assert benchmark.__doc__.splitlines()[0].endswith("?")
    assert callable(benchmark.main)


def test_a_save_has_begun_once_its_folder_is_there(tmp_path):
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "3").mkdir(parents=True)
    staging.Staging(checkpoints, None).choose_stage(4).mkdir()
    (checkpoints / "9.removed").mkdir()
    assert _crashing.newest(tmp_path) == 3
    assert _crashing.newest(tmp_path, begun=True) == 4


@pytest.fixture(scope="module", params=[name for name in NAMES if name != "gpu"])
def record(request, tmp_path_factory):
    """The results of a quick run."""
    results = tmp_path_factory.mktemp("results")
    flags = (BENCHMARKS / f"{request.param}.py", "--quick", "--results", results)
    if request.param == "crash_survival":  # sets the environment of its processes
        environment = {**os.environ, **QUICKLY}
        command = [sys.executable, *flags]
        run = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        said = run.communicate(timeout=300)[1]
    else:
        said, _ = (run := Script(*flags)).communicate(timeout=300)
    assert run.returncode == 0, said
    assert [file.name for file in results.iterdir()] == [f"{request.param}.json"]
    return json.loads((results / f"{request.param}.json").read_text())


def figures(tree, path=""):
    """Return all numbers in a tree of dicts and lists, with their paths."""
    if isinstance(tree, dict | list):
        parts = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return [found for name, part in parts for found in figures(part, f"{path}/{name}")]
    return [(path, tree)]


@pytest.mark.soak
def test_a_benchmark_reports_figures_and_the_machine(record):
    measured = figures(record["measured"]) + figures(record["ratios"])
    assert len(measured) > 10
    odd = {
        path: figure
        for path, figure in measured
        if not (math.isfinite(figure) and (figure > 0 or DIFFERENCE in path))
    }
    assert not odd
    assert record["quick"]
    assert record["unit"]
    assert record["warm_up"]
    assert record["repeats"]
    assert record["device"]
    assert record["cores"] >= 1
    assert {"python", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"} <= set(
        record["versions"]
    )
