"""Shutdown: close hooks in reverse order, then what they share, whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextvars import ContextVar

from trainer.hook import Hook
from trainer.host.time_spans import span

Close = Callable[[BaseException | None], None]
"""`(error) -> None`: the error that ended the run, or None."""

_closing: ContextVar[tuple[str, dict[Close, str]] | None] = ContextVar("_closing", default=None)
"""Name of the hook that is being closed, and what is deferred, with the hook that deferred it."""


def defer_close(close: Close, error: BaseException | None = None) -> None:
    """Call a function after all hooks of a chain are closed, or now if none is being closed.

    Use it to close what hooks share: hooks that are closed later may still use it, and it sees the
    files that they leave. A function that several hooks defer is called once, in the thread that
    closes them, with the error that ended the run.

    Args:
        close: a function, or a method of what is shared.
        error: passed to it if no hook is being closed.

    >>> def hook(name):
    ...     def close(error):
    ...         print(name)
    ...         defer_close(shared)
    ...     return Hook(lambda state, metrics: state, name, close=close)
    >>> def shared(error):
    ...     print("what they share")
    >>> close_all([hook("first"), hook("second")])
    second
    first
    what they share
    """
    closing = _closing.get()
    if closing is None:
        close(error)
    else:
        name, shared = closing
        shared.setdefault(close, name)


def close_all(hooks: Iterable[Hook], error: BaseException | None = None) -> None:
    """Close all hooks in reverse order, then what they share, even if closing some fails.

    Failures are added as notes to the error that ended the run. Without one the first is raised.
    """
    failed = error

    def attempt(name: str, close: Close) -> None:
        nonlocal failed
        try:
            with span("close", name):
                close(error)
        except BaseException as failure:  # also a signal's: close the others first
            failure.add_note(f"in closing hook {name!r}")
            if failed is None:
                failed = failure
            else:
                failed.add_note(f"and closing hook {name!r} failed: {failure!r}")

    shared: dict[Close, str] = {}
    for hook in reversed(tuple(hooks)):
        if hook.close is not None:
            before = _closing.set((hook.name, shared))
            try:
                attempt(hook.name, hook.close)
            finally:
                _closing.reset(before)
    for close, name in shared.items():
        attempt(name, close)
    if failed is not None and error is None:
        raise failed
