"""The three packages beside files and folders of a user that have their names."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import entracte
import hooks
import models
import trainer

ROOT = Path(__file__).parents[1]

TRAINING = """
import pickle, sys
from entracte import hooks, models, trainer
import hooks as own_hooks, models as own_models, trainer as own_trainer
import jax, optax
from models import blocks

assert (own_hooks.OWN, own_models.OWN, own_trainer.OWN, blocks.OWN) == (1, 2, 3, 4)
loaded = [name.partition(".")[0] for name in sys.modules]
assert (loaded.count("hooks"), loaded.count("models"), loaded.count("trainer")) == (1, 2, 1)
assert trainer.Hook is hooks.Hook

train, _ = trainer.data.digits(batch_size=256)
task = trainer.supervised(
    models.mlp(hidden=(8,), classes=10), trainer.losses.classification, optax.sgd(0.1)
)
chain = hooks.chain(
    hooks.from_config([{"stop_early": {"metric": "train/loss", "patience": 3}}]),
    hooks.save_checkpoints("run"),
)
start = task.init(jax.random.key(0), train.example)
phase = trainer.training(task.step, train)
state, _ = trainer.fit(start, phase, epochs=1, hooks=chain)
assert trainer.fingerprint(trainer.restore("run", state)) == trainer.fingerprint(state)

progress = hooks.Progress(1, 2)
assert pickle.loads(pickle.dumps(progress)) == progress

import entracte
sys.argv = ["entracte", "--help"]
assert entracte.main() == 0
"""

FACES = """
import sys
from entracte import hooks, models, trainer
import trainer as same, models as own
assert (trainer is same, own.OWN) == (True, 2)
assert hooks.Hook is trainer.Hook is same.Hook
assert "hooks" not in sys.modules
import hooks as own_hooks
assert own_hooks.OWN == 1
import entracte
sys.argv = ["entracte", "--help"]
assert entracte.main() == 0
"""


def _run(script, folder):
    (folder / "script.py").write_text(script)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.run(
        [sys.executable, "script.py"],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )


def _write_own(folder):
    (folder / "models").mkdir()
    (folder / "models" / "__init__.py").write_text("OWN = 2")
    (folder / "models" / "blocks.py").write_text("OWN = 4")
    (folder / "hooks.py").write_text("OWN = 1")


def test_all_three_train_beside_three_of_the_same_names(tmp_path):
    _write_own(tmp_path)
    (tmp_path / "trainer.py").write_text("OWN = 3")
    run = _run(TRAINING, tmp_path)
    assert run.returncode == 0, run.stderr
    assert "entracte COMMAND" in run.stdout
    assert "List the recorded runs" in run.stdout


def test_a_package_that_nothing_hides_is_not_loaded_twice(tmp_path):
    _write_own(tmp_path)
    run = _run(FACES, tmp_path)
    assert run.returncode == 0, run.stderr
    assert "Write a page about a run" in run.stdout  # of a command that imports hooks


def test_where_nothing_hides_them_they_are_the_packages():
    assert entracte.trainer is trainer
    assert entracte.hooks is hooks
    assert entracte.models is models
    assert pickle.dumps(trainer.Metrics).count(b"entracte") == 0


def test_their_names_there_are_refused_where_nothing_hides_them():
    with pytest.raises(ModuleNotFoundError, match="import models instead of entracte.models"):
        import entracte.models.cnn  # noqa: F401
    with pytest.raises(ImportError, match="cannot import name 'losses'"):
        from entracte import losses  # noqa: F401
