"""Hooks are closed in reverse order, and what they share once all are, whatever happens."""

import pytest

from trainer import Hook
from trainer.loop.shutdown import close_all, defer_close


@pytest.fixture
def said():
    return []


@pytest.fixture
def hook(said):
    """Return a function that makes hooks, which note their names when they are closed."""

    def make(name, also=lambda: None):
        def close(error):
            said.append(name)
            also()

        return Hook(lambda state, metrics: state, name, close=close)

    return make


def test_shared_resources_are_closed_once_and_last(said, hook):
    one, two = (lambda error: said.append("one")), (lambda error: said.append("two"))
    chain = [
        hook("first", lambda: defer_close(one)),
        hook("second", lambda: defer_close(two)),
        Hook(lambda state, metrics: state, "none"),
        hook("third", lambda: defer_close(one)),
    ]
    close_all(chain)
    assert said == ["third", "second", "first", "one", "two"]


def test_closing_is_not_deferred_if_no_hook_is_being_closed(said, hook):
    defer_close(lambda error: said.append("before"))
    close_all(
        [
            hook(
                "hook",
                lambda: defer_close(lambda error: defer_close(lambda error: said.append("shared"))),
            )
        ]
    )
    defer_close(lambda error: said.append("after"))
    assert said == ["before", "hook", "shared", "after"]


def test_a_chain_closed_within_another_closes_its_own_shared_resources(said, hook):
    inner = [hook("inner", lambda: defer_close(lambda error: said.append("of inner")))]
    outer = hook(
        "outer", lambda: (defer_close(lambda error: said.append("of outer")), close_all(inner))
    )
    close_all([hook("first"), outer])
    assert said == ["outer", "inner", "of inner", "first", "of outer"]


@pytest.mark.parametrize("error", [None, KeyError("under way")])
def test_all_are_closed_and_the_first_failure_is_raised(said, hook, error):
    def fail(error):
        said.append("shared")
        raise ValueError("no")

    chain = [hook("first"), hook("second", lambda: defer_close(fail)), hook("third", lambda: 1 / 0)]
    if error is None:
        with pytest.raises(ZeroDivisionError) as raised:
            close_all(chain)
        first, second = raised.value.__notes__
        assert first == "in closing hook 'third'"
    else:
        close_all(chain, error)
        third, second = error.__notes__
        assert third.startswith("and closing hook 'third' failed: ZeroDivisionError")
    assert second == "and closing hook 'second' failed: ValueError('no')"
    assert said == ["third", "second", "first", "shared"]
