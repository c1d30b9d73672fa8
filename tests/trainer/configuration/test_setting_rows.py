"""Settings as rows, and as they are spelled."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from trainer.checkpoints.saved_config import normalize_config
from trainer.configuration.setting_rows import format_settings


@dataclasses.dataclass
class _Optimizer:
    name: str = "adamw"
    schedule: dict = dataclasses.field(default_factory=lambda: {"warmup": 10})


@pytest.mark.parametrize(
    ("config", "rows"),
    [
        (None, {}),
        ({}, {}),
        ({"a": None, "b": True, "c": {}}, {"a": "null", "b": "true", "c": "{}"}),
        (
            {"optimizer": _Optimizer()},
            {"optimizer.name": "adamw", "optimizer.schedule.warmup": "10"},
        ),
        ({"layers": [{"width": 8}, {"width": 4}]}, {"layers.0.width": "8", "layers.1.width": "4"}),
        ({"grid": ((1, 2), [3])}, {"grid.0": "[1, 2]", "grid.1": "[3]"}),
        ({"shape": (8, 8), "tags": []}, {"shape": "[8, 8]", "tags": "[]"}),
        ({"rate": float("inf"), "name": "größe"}, {"rate": "Infinity", "name": "größe"}),
        ({"folder": Path("a/b"), "folders": [Path("a")]}, {"folder": "a/b", "folders": '["a"]'}),
    ],
)
def test_a_configuration_is_flattened_to_rows(config, rows):
    assert format_settings(config) == rows


def test_settings_are_formatted_as_recorded():
    config = {"shape": (8, 8), "rate": float("inf"), "folder": Path("a"), "clip": None, "on": True}
    assert format_settings(config) == format_settings(normalize_config(config))
