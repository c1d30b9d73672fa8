"""Suites that files define."""

import sys

import pytest

from trainer.evaluators import Suite, load_suites

TEXT = """
import jax, numpy as np
import beside
from trainer import TrainState, data, evaluation
from trainer.evaluators import Suite

source = data.Arrays({"inputs": np.arange(5.0)}, batch_size=2)
state = TrainState.create(params=np.float32(0), rng=jax.random.key(0))
phase = evaluation(lambda state, batch: {"x": batch["inputs"]}, source)
one = Suite("one", state, phase)

def several():
    return [one, Suite("two", state, phase)]

number = 3
nothing = ()

if __name__ == "__main__":
    raise SystemExit("run as a script")
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    (tmp_path / "beside.py").write_text("here = True\n")
    (tmp_path / "mine.py").write_text(TEXT)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path / "mine.py"
    for name in [n for n in sys.modules if n.startswith("entracte_loaded_") or n == "beside"]:
        del sys.modules[name]


def test_one_suite_several_and_functions_are_loaded(file):
    suites = load_suites(f"{file}:one", f"{file}:several")
    assert [suite.name for suite in suites] == ["one", "one", "two"]
    assert suites[0] is suites[1]
    assert isinstance(suites[0], Suite)


@pytest.mark.parametrize(
    ("named", "error", "says"),
    [
        ("mine.py", ValueError, "give FILE:NAME"),
        ("mine.txt:one", ValueError, "give FILE:NAME"),
        ("mine.py:no name", ValueError, "give FILE:NAME"),
        ("none.py:one", FileNotFoundError, "there is no file .*none.py, in which 'one'"),
        (
            "mine.py:three",
            AttributeError,
            r"'three' \(there is: source, state, phase, one, several, number",
        ),
        ("mine.py:number", TypeError, "must be a .*Suite.*; got 3"),
        ("mine.py:nothing", TypeError, r"got \(\)"),
    ],
)
def test_names_that_cannot_be_loaded_are_refused(file, named, error, says):
    with pytest.raises(error, match=says):
        load_suites(str(file.parent / named))


def test_a_file_that_fails_is_named_and_can_be_corrected(file):
    file.write_text("1 / 0\n")
    with pytest.raises(ZeroDivisionError) as failed:
        load_suites(f"{file}:one")
    assert failed.value.__notes__ == [f"in loading {file}"]
    file.write_text(TEXT + "#")
    assert load_suites(f"{file}:one")[0].name == "one"
