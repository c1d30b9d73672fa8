"""Closing: hooks in reverse order, whatever happens, and what they share once all are closed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextvars import ContextVar

from trainer.hook import Hook
from trainer.host.time_spans import span

Close = Callable[[], None]

_under_way: ContextVar[tuple[str, dict[Close, str]] | None] = ContextVar("_under_way", default=None)
"""The hook that is being closed, and what is to come once all are, with who asked for it first."""


def defer_close(close: Close) -> None:
    """Call something once all hooks of a chain are closed; at once where none is being closed.

    What hooks share is closed so: those that come later may still use it, and it sees the files
    that they leave. However many ask for it, it is called once, in the thread that closes them.

    Args:
        close: a function, or a method of what is shared.

    >>> def hook(name):
    ...     def close():
    ...         print(name)
    ...         defer_close(shared)
    ...     return Hook(lambda state, metrics: state, name, close=close)
    >>> def shared():
    ...     print("what they share")
    >>> close_all([hook("first"), hook("second")])
    second
    first
    what they share
    """
    under_way = _under_way.get()
    if under_way is None:
        close()
    else:
        name, shared = under_way
        shared.setdefault(close, name)


def close_all(hooks: Iterable[Hook], error: BaseException | None = None) -> None:
    """Close all hooks in reverse order, then what they share, whatever happens.

    Args:
        hooks: in the order of the chain.
        error: that ends the run: failures to close are noted on it. Without one, the first
            failure is raised.
    """
    failed = error

    def attempt(name: str, close: Close) -> None:
        nonlocal failed
        try:
            with span("close", name):
                close()
        except BaseException as failure:  # a signal's too: the others are still to be closed
            failure.add_note(f"in closing hook {name!r}")
            if failed is None:
                failed = failure
            else:
                failed.add_note(f"and closing hook {name!r} failed: {failure!r}")

    shared: dict[Close, str] = {}
    for hook in reversed(tuple(hooks)):
        if hook.close is not None:
            before = _under_way.set((hook.name, shared))
            try:
                attempt(hook.name, hook.close)
            finally:
                _under_way.reset(before)
    for close, name in shared.items():
        attempt(name, close)
    if failed is not None and error is None:
        raise failed
