"""A value that takes long to compute, and is computed once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class ComputedOnce(Generic[Value]):
    """A value, computed by whichever thread asks first, while others that ask wait.

    If that fails, the next one that asks tries again.

    >>> text = ComputedOnce(lambda: str(7))
    >>> text.known, text.get() is text.get(), text.known
    (False, True, True)
    """

    def __init__(self, compute: Callable[[], Value]) -> None:
        self._compute: Callable[[], Value] | None = compute
        self._computing = threading.Lock()
        self._values: list[Value] = []

    @property
    def known(self) -> bool:
        """Whether it is computed."""
        return bool(self._values)

    def get(self) -> Value:
        """Return the value."""
        if not self._values:
            with self._computing:
                if self._compute is not None:
                    self._values.append(self._compute())
                    self._compute = None  # and what it holds
        return self._values[0]
