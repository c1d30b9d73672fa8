"""Conditions on configurations: which runs meet them, and which are malformed."""

from __future__ import annotations

import pytest

from trainer.commands.lookup.conditions import filter_runs
from trainer.commands.terminal.calling import CommandError

CONFIGS = {
    "one": {"rate": 0.5, "name": "adam", "on": True, "clip": None, "width": 8},
    "two": {"rate": 2, "name": "sgd", "on": False, "clip": 1.0, "width": "wide"},
    "bare": {},
}


@pytest.fixture
def rows(store):
    """The rows of runs with these configurations."""
    for name, config in CONFIGS.items():
        store.register(name, directory="/d", host="h", pid=1, time=0.0, config=config)
    return [store.run(name) for name in CONFIGS]


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (["rate=0.5"], ["one"]),
        (["rate = 0.50"], ["one"]),
        (["rate==2"], ["two"]),
        (["rate!=2"], ["one", "bare"]),
        (["rate < 1"], ["one"]),
        (["rate>=0.5", "name<b"], ["one"]),
        (['name>="adam"'], ["one", "two"]),
        (["on=true"], ["one"]),
        (["on=1"], []),
        (["rate=fast"], []),
        (["clip=null"], ["one"]),
        (["clip<2"], ["two"]),
        (["width>1"], ["one"]),
        (["width>a"], ["two"]),
        ([], ["one", "two", "bare"]),
    ],
)
def test_conditions_select_runs(rows, conditions, expected):
    assert [row.name for row in filter_runs(rows, conditions)] == expected


@pytest.mark.parametrize(
    ("condition", "told"),
    [
        ("rate > abc", "'rate' is the number 0.5 in run 'one', and cannot .* the text 'abc'"),
        ("name<3", "'name' is the text 'adam' in run 'one', and cannot .* the number 3"),
        ("on<1", "'on' is the truth true in run 'one', and cannot .* the number 1"),
        ("rate<null", "'rate' is the number 0.5 in run 'one', and cannot .* null"),
        ("rates<1", "has the setting 'rates'. Did you mean 'rate'"),
        ("rate", "a condition is SETTING=VALUE"),
    ],
)
def test_values_of_different_kinds_cannot_be_compared(rows, condition, told):
    with pytest.raises(CommandError, match=told):
        filter_runs(rows, [condition])
    with pytest.raises(CommandError, match=told):
        filter_runs(rows, ["name=lion", condition])  # although no run is left to compare


def test_a_setting_without_values_meets_no_comparison(rows):
    assert filter_runs(rows[:1], ["clip<2"]) == []
