"""Signals: SIGTERM and SIGINT end a run after the running epoch's commit, a second one at once."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import jax

log = logging.getLogger("entracte")


class Received:
    """Which signal this process was sent: its number, 0 if none."""

    number: int = 0


def end_process(number: int, state: Any = None, history: Any = None) -> None:
    """End the process in a signal's usual way; 0 does nothing.

    Raises:
        SystemExit: with status 143, on SIGTERM.
        KeyboardInterrupt: on SIGINT, carrying what was reached.
    """
    if number == signal.SIGTERM:
        raise SystemExit(128 + signal.SIGTERM)
    if number == signal.SIGINT:
        raise attach_progress(KeyboardInterrupt(), state, history)


def attach_progress(error: KeyboardInterrupt, state: Any, history: Any) -> KeyboardInterrupt:
    """Put what was reached on the exception, for who catches it.

    No class of its own: Python ends with a signal's status on KeyboardInterrupt itself alone.
    """
    error.state, error.history = state, history  # type: ignore[attr-defined]
    if history:
        error.add_note(
            "the state and the metrics of each epoch so far are the exception's `state` and "
            "`history`: except KeyboardInterrupt as stopped: ... (in a notebook sys.last_value)"
        )
    return error


@contextlib.contextmanager
def catch_signals(after: str = "this epoch") -> Iterator[Received]:
    """Note SIGTERM and SIGINT instead of ending; a second one ends at once.

    Handlers can be installed in the main thread only; elsewhere it says so and goes on. Afterwards
    those that were there before are put back.

    Args:
        after: what is still to be done before the end, for the log.
    """
    received = Received()
    if threading.current_thread() is not threading.main_thread():
        log.debug("not in the main thread: SIGTERM and SIGINT are left as they are")
        yield received
        return

    def note(number: int, frame: FrameType | None) -> None:
        if received.number:
            _leave_at_exit(128 + number)
            end_process(number)
        received.number = number
        log.warning("%s: ending after %s", signal.Signals(number).name, after)

    with _installed(signal.SIGTERM, note), _installed(signal.SIGINT, note):
        yield received


@contextlib.contextmanager
def _installed(number: signal.Signals, handler: object) -> Iterator[None]:
    """Install a handler, and put back what the system had.

    Python alone cannot: it knows nothing of handlers that libraries installed, such as JAX's notice
    of preemption (SIGTERM, once `jax.distributed` is initialised), and would put the default back.
    """
    system = ctypes.CDLL(None).sigaction
    action = ctypes.create_string_buffer(1024)  # at least a struct sigaction, never looked into
    system(number, None, action)
    before = signal.signal(number, handler)  # type: ignore[arg-type]
    try:
        yield
    finally:
        if before is not None:
            signal.signal(number, before)
        system(number, action, None)


def _leave_at_exit(status: int) -> None:
    """Let the process end, when it does, without waiting for the device, as XLA would.

    Exit functions that were registered before are then not called.
    """
    computed = [a for a in jax.live_arrays() if not (a.is_deleted() or a.is_ready())]
    if not computed:
        return
    smallest = min(computed, key=lambda array: array.nbytes)  # it is kept; one tells of all

    def leave() -> None:
        if not smallest.is_ready():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    atexit.register(leave)
