"""SIGTERM and SIGINT end a run after the current epoch's checkpoint, a second one at once."""

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


class ReceivedSignal:
    """The signal that this process received: its number, 0 if none."""

    number: int = 0


def end_process(number: int, state: Any = None, history: Any = None) -> None:
    """End the process as a signal usually does; 0 does nothing.

    Raises:
        SystemExit: with status 143, on SIGTERM.
        KeyboardInterrupt: on SIGINT, with the state and history reached.
    """
    if number == signal.SIGTERM:
        raise SystemExit(128 + signal.SIGTERM)
    if number == signal.SIGINT:
        raise attach_progress(KeyboardInterrupt(), state, history)


def attach_progress(error: KeyboardInterrupt, state: Any, history: Any) -> KeyboardInterrupt:
    """Attach the state and history reached to the exception, for whoever catches it.

    It has no class of its own: Python exits with a signal's status only on KeyboardInterrupt.
    """
    error.state, error.history = state, history  # type: ignore[attr-defined]
    if history:
        error.add_note(
            "the state and the metrics of each epoch so far are the exception's `state` and "
            "`history`: except KeyboardInterrupt as stopped: ... (in a notebook sys.last_value)"
        )
    return error


@contextlib.contextmanager
def catch_signals(after: str = "this epoch") -> Iterator[ReceivedSignal]:
    """Record SIGTERM and SIGINT instead of ending; a second one ends at once.

    The log names what the process still does before it ends, `after`. Handlers can be installed in
    the main thread only; elsewhere this logs it and does nothing. The earlier handlers are restored
    afterwards.
    """
    received = ReceivedSignal()
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

    with _handler_installed(signal.SIGTERM, note), _handler_installed(signal.SIGINT, note):
        yield received


@contextlib.contextmanager
def _handler_installed(number: signal.Signals, handler: object) -> Iterator[None]:
    """Install a handler, and restore the system's one afterwards.

    Python alone cannot: it does not know handlers that libraries installed, such as JAX's notice of
    preemption (SIGTERM, once `jax.distributed` is initialised), and would restore the default.
    """
    system = ctypes.CDLL(None).sigaction
    action = ctypes.create_string_buffer(1024)  # at least a struct sigaction, never inspected
    system(number, None, action)
    before = signal.signal(number, handler)  # type: ignore[arg-type]
    try:
        yield
    finally:
        if before is not None:
            signal.signal(number, before)
        system(number, action, None)


def _leave_at_exit(status: int) -> None:
    """Make the process exit without waiting for the device, as XLA would.

    Exit functions that were registered earlier are then not called.
    """
    computed = [a for a in jax.live_arrays() if not (a.is_deleted() or a.is_ready())]
    if not computed:
        return
    smallest = min(computed, key=lambda array: array.nbytes)  # it is kept alive; one stands for all

    def leave() -> None:
        if not smallest.is_ready():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    atexit.register(leave)
