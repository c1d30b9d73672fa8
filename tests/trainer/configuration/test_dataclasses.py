"""Settings that cannot be meant are refused where they are made."""

import dataclasses
from pathlib import Path

import pytest

from trainer.configuration import Logging, Optimizer, Schedule, TrainingConfig


@pytest.mark.parametrize(
    ("cls", "settings", "said"),
    [
        (Optimizer, {"learning_rate": 0.0}, "learning_rate must be above 0; got 0.0"),
        (Optimizer, {"weight_decay": -0.1}, "weight_decay must not be negative"),
        (Optimizer, {"betas": (0.9, 1.0)}, "betas and momentum must be in"),
        (Optimizer, {"name": "sgd", "momentum": 1.0}, "betas and momentum must be in"),
        (Optimizer, {"clip_norm": 0.0}, "clip_norm must be above 0"),
        (Optimizer, {"accumulate": 0}, "accumulate must be at least 1"),
        (Optimizer, {"name": "adam", "weight_decay": 0.1}, "choose adamw"),
        (Optimizer, {"name": "sgd", "betas": (0.9, 0.99)}, "sgd has no betas; give momentum"),
        (Optimizer, {"momentum": 0.9}, "adamw has no momentum; give betas"),
        (Schedule, {"warmup_steps": -1}, "warmup_steps"),
        (Schedule, {"warmup_share": 1.0}, "warmup_share must be in"),
        (Schedule, {"warmup_steps": 5, "warmup_share": 0.1}, "mean the same"),
        (Schedule, {"steps": 0}, "steps must be at least 1"),
        (Schedule, {"decay_to": 1.5}, "decay_to must be in"),
        (Logging, {"json_lines": False}, "report is made from what json_lines writes"),
        (TrainingConfig, {"epochs": -1}, "epochs must not be negative"),
        (TrainingConfig, {"batch_size": 0}, "at least 1 example"),
    ],
)
def test_a_setting_out_of_range_is_refused(cls, settings, said):
    with pytest.raises(ValueError, match=said):
        cls(**settings)


def test_a_configuration_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainingConfig().epochs = 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainingConfig().optimizer.name = "sgd"


def test_a_script_adds_settings_and_defaults():
    @dataclasses.dataclass(frozen=True)
    class Config(TrainingConfig):
        run: Path = Path("runs/mine")
        width: int = 8

    assert Config(epochs=2) == Config(Path("runs/mine"), 2)
    assert Config(epochs=2) != Config(epochs=2, width=9)
