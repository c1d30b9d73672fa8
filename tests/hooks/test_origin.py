"""A file or folder `trainer` beside a script hides ours, and is named."""

import sys

import pytest

from hooks.origin import check_package_origin


@pytest.mark.parametrize("own", ["trainer.py", "trainer/__init__.py"])
def test_a_file_that_hides_the_package_is_named(tmp_path, monkeypatch, own):
    (tmp_path / own).parent.mkdir(exist_ok=True)
    (tmp_path / own).write_text("raise SystemExit('it was run')")
    monkeypatch.delitem(sys.modules, "trainer")
    monkeypatch.syspath_prepend(tmp_path)
    place = (tmp_path / own) if own == "trainer.py" else tmp_path / "trainer"
    with pytest.raises(ImportError) as raised:
        check_package_origin("trainer")
    assert f"Python finds {place}, which hides it: rename that" in str(raised.value)


def test_one_that_was_imported_before_is_named_too(tmp_path, monkeypatch):
    class Theirs:
        __file__ = str(tmp_path / "trainer.py")

    monkeypatch.setitem(sys.modules, "trainer", Theirs)
    with pytest.raises(ImportError, match=r"trainer\.py, which hides it"):
        check_package_origin("trainer")


def test_ours_passes():
    check_package_origin("trainer")
    check_package_origin("no_such_package")
