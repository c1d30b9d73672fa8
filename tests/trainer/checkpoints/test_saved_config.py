"""A configuration in a checkpoint: what is taken, what is refused by its key, what differs."""

import enum
import math
import pathlib

import numpy as np
import pytest

from trainer.checkpoints.saved_config import config_differences, normalize_config


class Kind(enum.IntEnum):
    ONE = 1


def test_configurations_differ_by_key_but_for_epochs_and_run():
    saved = {"rate": 0.1, "model": {"widths": (8, 8), "norm": None}, "epochs": 3, "run": "a"}
    now = {"rate": 0.1, "model": {"widths": [8, 9]}, "seed": 1, "epochs": 9}
    assert config_differences(saved, saved) == []
    assert config_differences(saved, now) == [
        "model/norm: saved null, now nothing",
        "model/widths: saved [8, 8], now [8, 9]",
        "seed: saved nothing, now 1",
    ]


def test_a_configuration_is_compared_as_read_back_from_json():
    config = {"path": pathlib.Path("a/b"), "sizes": (1, 2), 3: math.nan, "empty": {}}
    assert config_differences(normalize_config(config), config) == []


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (np.float32(0.5), 0.5),
        (np.float64(0.1), 0.1),
        (np.int8(-3), -3),
        (np.bool_(True), True),
        (np.str_("adam"), "adam"),
        (np.float16("inf"), "Infinity"),
        ([np.int64(2**40), (np.uint8(7),)], [2**40, [7]]),
        (Kind.ONE, 1),
    ],
)
def test_numpy_scalars_are_saved_as_python_scalars(value, kept):
    (got,) = normalize_config({"a": value}).values()
    assert (type(got), got) == (type(kept), kept)


def nested(depth):
    config = {}
    for _ in range(depth):
        config = {"deeper": config}
    return config


def circular():
    config = {"a": {}}
    config["a"]["b"] = config
    return config


@pytest.mark.parametrize(
    ("config", "error", "said"),
    [
        ({"raw": b"abc"}, TypeError, r"'raw' is builtins\.bytes"),
        ({"model": {"act": print}}, TypeError, "'model/act' is builtins.builtin_function"),
        ({"sizes": [1, {2}]}, TypeError, "'sizes/1' is builtins.set"),
        ({"table": np.zeros(2)}, TypeError, r"'table' is numpy\.ndarray.*array\.tolist\(\)"),
        ({"z": np.complex64(1j)}, TypeError, "'z' is builtins.complex"),
        ({"wide": np.longdouble(1)}, TypeError, "'wide' is numpy.longdouble"),
        ({"when": np.datetime64("2020-01-01")}, TypeError, "'when' is datetime.date"),
        ({"a": {(1, 2): 3}}, TypeError, r"got the key \(1, 2\) at 'a'"),
        ({"a": {1: "x", "1": "y"}}, ValueError, "two keys '1' at 'a'"),
        (nested(200), ValueError, "100 levels deep, or contains itself: at 'deeper/deeper/"),
        (circular(), ValueError, "contains itself: at 'a/b/a/b'"),
        ([("a", 1)], TypeError, "must be a mapping of settings; got list"),
    ],
)
def test_values_that_json_does_not_have_are_refused_by_key(config, error, said):
    with pytest.raises(error, match=said):
        normalize_config(config)
