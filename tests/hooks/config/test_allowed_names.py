"""Names that a configuration file may use."""

import inspect
from importlib.metadata import EntryPoint, EntryPoints

import pytest

import hooks
from hooks.config import allowed_names
from hooks.config.allowed_names import find_factory, list_factories, read_type_hints
from hooks.control.stopping import stop_on_nan

NO_HOOKS = {
    "SKIP",
    "backtest",
    "build_hooks",
    "build_writers",
    "from_config",
    "image_grid",
    "learning_progress",
    "reads",
    "thresholds",
    "write_config",
    "writes",
}
"""Public functions that return no hook, or take what no file can hold."""


def _points(monkeypatch, *points):
    """Register these entry points of other packages: (name, value)."""
    found = EntryPoints(EntryPoint(name, value, allowed_names.GROUP) for name, value in points)
    select = {"entry_points": lambda **terms: found.select(**terms)}
    monkeypatch.setattr(allowed_names, "metadata", type("metadata", (), select))


def test_every_hook_of_the_public_face_has_its_name():
    functions = {name for name in hooks.__all__ if inspect.isfunction(getattr(hooks, name))}
    makers = list_factories("hook", hooks)
    assert functions - makers.keys() <= NO_HOOKS
    assert not makers.keys() & NO_HOOKS
    assert {"evaluate", "every", "log_metrics", "stop_early", "save_checkpoints"} <= makers.keys()


def test_a_type_checking_import_becomes_object():
    assert read_type_hints(hooks.Console) == {"console": object | None, "return": type(None)}
    assert read_type_hints(print) == {}


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("stop_erly", "hook", "x: there is no hook of this name. Did you mean 'stop_early'"),
        ("Console", "hook", "no hook of this name"),
        ("stop_on_nan", "writer", "no writer of this name .there is: Console, Database"),
        ("Writer", "writer", "no writer of this name"),
        ("TrainState", "hook", "no hook of this name"),
        ("from_config", "hook", "no hook of this name"),
        ("os.system", "hook", "no hook of this name"),
        ("hooks.control.stopping.stop_on_nan", "hook", "no hook of this name"),
    ],
)
def test_unknown_names_are_refused(name, kind, said):
    with pytest.raises(ValueError, match=said):
        find_factory(name, kind, "x", hooks)


def test_other_packages_register_hooks_by_entry_points(monkeypatch):
    point = ("stop_when_told", "hooks.control.stopping:stop_on_nan")
    _points(monkeypatch, point, point)  # an installation may be listed twice
    assert find_factory("stop_when_told", "hook", "x", hooks) is stop_on_nan
    with pytest.raises(ValueError, match="Did you mean 'stop_when_told'"):
        find_factory("stop_when_tol", "hook", "x", hooks)


def test_an_ambiguous_name_is_refused(monkeypatch):
    _points(monkeypatch, ("stop_on_nan", "theirs:stop"), ("two", "one:two"), ("two", "another:two"))
    with pytest.raises(ValueError, match="several of this name: this library, theirs:stop"):
        find_factory("stop_on_nan", "hook", "x", hooks)
    with pytest.raises(ValueError, match="several of this name: one:two, another:two"):
        find_factory("two", "hook", "x", hooks)
