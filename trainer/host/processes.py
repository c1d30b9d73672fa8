"""Agreement of several processes, so that none continues while another stops."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import NamedTuple

import jax
import numpy as np
import xxhash

from trainer.host.exchange import exchange_words


class StopReasons(NamedTuple):
    """Why a run may end at this event, as seen by one process or agreed by all."""

    stop: bool
    """A hook's decision in the state."""
    interrupt: bool
    """A hook raised `Interrupt`."""
    signal: int
    """Number of the signal received; 0 if there was none."""


NO_STOP = StopReasons(stop=False, interrupt=False, signal=0)


def is_main_process() -> bool:
    """Return whether this is the process that observes and writes: the first."""
    return jax.process_index() == 0


def from_main_process(
    values: Mapping[str, float], failure: Exception | None = None
) -> dict[str, float]:
    """Return the main process's values on every process, bit for bit; all must call it.

    Args:
        values: of the same names on every process.
        failure: why this process cannot go on, which ends all of them.

    Raises:
        FailedElsewhereError: another process failed, or exchanges something else.

    >>> from_main_process({"time/epoch_seconds": 0.5})
    {'time/epoch_seconds': 0.5}
    """
    if jax.process_count() == 1 and failure is None:
        return dict(values)
    shared = exchange_numbers(f"the values {', '.join(values)}", [*values.values()], failure)
    return dict(zip(values, shared[0].tolist(), strict=True))


def combine_reasons(found: np.ndarray) -> StopReasons:
    """Combine the reasons of all processes, `[process, reason]`, with the same result on each.

    Every process decides by what was gathered from all, never by its own alone: a signal or an
    interrupt of one ends them all at this event.

    Raises:
        RuntimeError: only some of the states stop: their hooks saw different metrics.

    >>> combine_reasons(np.array([[0, 0, 15], [0, 1, 0]]))
    StopReasons(stop=False, interrupt=True, signal=15)
    """
    stop, interrupt, signal = found.T.astype(np.int64)
    if stop.any() != stop.all():
        raise RuntimeError(
            f"processes {np.flatnonzero(stop).tolist()} decided to stop and the others did not: "
            "a control hook must be a function of state and metrics alone, which are the same "
            "everywhere"
        )
    return StopReasons(bool(stop[0]), bool(interrupt.any()), int(signal.max()))


def check_same(what: str) -> None:
    """Check that every process is about to do the same thing, as described; all must call it.

    Raises:
        RuntimeError: another process is about to do something else.
    """
    digest = np.frombuffer(xxhash.xxh3_64_digest(what.encode()), np.uint32)
    seen = exchange_words("the start of a run", digest)
    if others := [p for p in range(len(seen)) if not np.array_equal(seen[p], digest)]:
        raise RuntimeError(
            f"process {jax.process_index()} runs something else than {others}: epochs, phases and "
            f"hooks must be the same everywhere (observers run on process 0 alone, and are listed "
            f"by all); here: {what}"
        )


_enclosed: ContextVar[bool] = ContextVar("_enclosed", default=False)
"""Whether a failure of this process is passed on to the others by an enclosing block."""


@contextlib.contextmanager
def failing_alone() -> Iterator[None]:
    """Let `fail_together` within a block fail here alone: the caller tells the others."""
    token = _enclosed.set(True)
    try:
        yield
    finally:
        _enclosed.reset(token)


@contextlib.contextmanager
def fail_together(what: str) -> Iterator[None]:
    """Run a block that may fail on one process, and then fail on all of them at once.

    All must call it, and the block must not wait for another process. Within another such block, or
    one of `failing_alone`, it leaves the exchange to that.

    Raises:
        FailedElsewhereError: it failed on another process; the message calls it `what`.

    >>> with fail_together("dividing"):
    ...     1 / 0
    Traceback (most recent call last):
    ZeroDivisionError: division by zero
    """
    if jax.process_count() == 1 or _enclosed.get():
        yield
        return
    failure: Exception | None = None
    try:
        with failing_alone():
            yield
    except Exception as error:
        failure = error
    exchange_words(what, np.zeros(0, np.uint32), failure)


def exchange_numbers(
    what: str, numbers: Sequence[float], failure: Exception | None = None
) -> np.ndarray:
    """Return the numbers of all processes, float64 `[process, number]`; see `exchange_words`.

    >>> exchange_numbers("shares", [0.1, 0.2])
    array([[0.1, 0.2]])
    """
    words = exchange_words(what, np.array(numbers, np.float64).view(np.uint32), failure)
    return np.ascontiguousarray(words).view(np.float64)


def gather_values(values: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the values of each process, as many int64 each, on all of them; all must call it.

    >>> gather_values([3, -1])
    [(3, -1)]
    """
    words = exchange_words("whole numbers", np.array(values, np.int64).view(np.uint32))
    return [tuple(np.ascontiguousarray(row).view(np.int64).tolist()) for row in words]


def draw_shared_name() -> str:
    """Draw a name of 16 hexadecimal digits, the same on all processes; all must call it.

    >>> len(draw_shared_name())
    16
    """
    return f"{gather_values([secrets.randbits(62)])[0][0]:016x}"
