"""Agreement of several processes, so that none continues while another stops."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
import xxhash
from jax.experimental import multihost_utils


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


def from_main_process(values: Mapping[str, float]) -> dict[str, float]:
    """Return the main process's values on every process, bit for bit; all must call it.

    >>> from_main_process({"time/epoch_seconds": 0.5})
    {'time/epoch_seconds': 0.5}
    """
    if jax.process_count() == 1:
        return dict(values)
    bits = np.array(list(values.values()), np.float64).view(np.uint32)
    shared = np.ascontiguousarray(_gather(bits)[0]).view(np.float64)
    return dict(zip(values, shared.tolist(), strict=True))


def agree_on_stop(reasons: StopReasons) -> StopReasons:
    """Combine the reasons of all processes, with the same result on each; all must call it.

    Every process decides by what was gathered from all, never by its own alone: a signal or an
    interrupt of one ends them all at this event.

    Raises:
        RuntimeError: only some of the states stop: their hooks saw different metrics.

    >>> agree_on_stop(StopReasons(stop=False, interrupt=False, signal=15))
    StopReasons(stop=False, interrupt=False, signal=15)
    """
    if jax.process_count() == 1:
        return reasons
    stop, interrupt, signal = _gather(np.array(reasons, np.int32)).T
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
    seen = _gather(digest)
    if others := [p for p in range(len(seen)) if not np.array_equal(seen[p], digest)]:
        raise RuntimeError(
            f"process {jax.process_index()} runs something else than {others}: epochs, phases and "
            f"hooks must be the same everywhere (observers run on process 0 alone, and are listed "
            f"by all); here: {what}"
        )


@contextlib.contextmanager
def fail_together(what: str) -> Iterator[None]:
    """Run a block that may fail on one process, and then fail on all of them at once.

    All must call it, and the block must not wait for another process.

    Raises:
        RuntimeError: it failed on another process; the message calls it `what`.

    >>> with fail_together("dividing"):
    ...     1 / 0
    Traceback (most recent call last):
    ZeroDivisionError: division by zero
    """
    if jax.process_count() == 1:
        yield
        return
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    failed = np.flatnonzero(_gather(np.array([failure is not None], np.int32))[:, 0]).tolist()
    if failure is not None:
        raise failure
    if failed:
        raise RuntimeError(
            f"{what} failed on process {', '.join(map(str, failed))}, whose own error says why; "
            f"process {jax.process_index()} ends with it"
        )


def gather_values(values: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the values of each process, as many int64 each, on all of them; all must call it.

    >>> gather_values([3, -1])
    [(3, -1)]
    """
    words = _gather(np.array(values, np.int64).view(np.uint32))
    return [tuple(np.ascontiguousarray(row).view(np.int64).tolist()) for row in words]


def _gather(values: np.ndarray) -> np.ndarray:
    """Return the values of all processes, `[process, ...]`."""
    if jax.process_count() == 1:
        return values[None]
    return np.asarray(multihost_utils.process_allgather(values))
