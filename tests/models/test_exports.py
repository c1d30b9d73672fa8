"""The public face of the package."""

import ast
import inspect
from pathlib import Path

import models


def test_the_public_names_are_these():
    assert models.__all__ == [
        "ActorCritic",
        "Decoder",
        "Network",
        "actor_critic",
        "captioner",
        "cnn",
        "from_linen",
        "from_nnx",
        "generate",
        "mlp",
        "remat",
        "resnet",
        "transformer",
    ]
    assert models.__all__ == sorted(models.__all__)


def test_every_public_name_says_what_it_is():
    for name in models.__all__:
        assert inspect.getdoc(getattr(models, name))


def test_models_import_neither_trainer_nor_hooks():
    for file in Path(models.__file__).parent.glob("**/*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not {name.split(".")[0] for name in names} & {"trainer", "hooks"}, file.name
