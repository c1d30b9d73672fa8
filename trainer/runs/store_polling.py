"""Looking at a store in the midst of training, which waits for no answer for long."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from trainer.host.redaction import redact_text
from trainer.runs.connections import Unreachable
from trainer.runs.store import Store

Given = TypeVar("Given")

PATIENCE = 1.0
"""Seconds to wait for an answer."""


class StorePoller:
    """Asks a store, and waits a second for an answer, whatever the store is doing.

    A server that hangs with its connection open says nothing for as long as it likes: it is asked
    on a thread. Where there was no answer in time, nothing else is asked until that one has come,
    and nobody waits for it. SQLite gives up by itself, and needs no thread.

    Args:
        url: of the store.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Store(folder).close()
    ...     onlooker = StorePoller(f"sqlite:///{folder}/store.sqlite")
    ...     onlooker.ask(Store.runs)
    ...     onlooker.close()
    []
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._answer: Future[Any] | None = None
        self._opened: list[Store] = []

    def ask(self, do: Callable[..., Given], *arguments: Any, **settings: Any) -> Given:
        """Call `do(store, ...)`, over a connection that is made where there is none.

        Raises:
            Unreachable: the store is away; it does not answer in time, or has not answered yet
                what it was asked before.
            Exception: what else `Store` or `do` raises.
        """
        if self._answer is not None and not self._answer.done():
            raise Unreachable(f"the store {redact_text(self._url)} has not answered yet")
        answer: Future[Given] = Future()
        opened = self._opened

        def work() -> None:
            try:
                if not opened:
                    opened.append(Store(self._url, create=False, patience=PATIENCE))
                given = do(opened[0], *arguments, **settings)
            except BaseException as error:  # a signal's too: it is the answer, and raised below
                _close(opened)
                answer.set_exception(error)
            else:
                answer.set_result(given)

        self._answer = answer
        if self._url.startswith("sqlite:"):
            work()
        else:  # a daemon: a server that hangs must not keep the process from ending
            thread = threading.Thread(target=work, name="entracte-look", daemon=True)
            thread.start()
            thread.join(PATIENCE)
        if not answer.done():
            raise Unreachable(
                f"the store {redact_text(self._url)} gives no answer in {PATIENCE:g} s"
            )
        return answer.result()

    def close(self) -> None:
        """End the connection, once the store has answered; a further question makes another."""
        answer, opened = self._answer, self._opened
        self._answer, self._opened = None, []
        if answer is not None:
            answer.add_done_callback(lambda _: _close(opened))


def _close(opened: list[Store]) -> None:
    while opened:
        opened.pop().close()
