"""Several processes: what they must agree on, so that none goes on where another stops."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
import xxhash
from jax.experimental import multihost_utils


class StopReasons(NamedTuple):
    """Why a run may end at this event, as one process sees it and as all do together."""

    stop: bool
    """A hook's decision, of the state."""
    interrupt: bool
    """A hook raised `Interrupt`."""
    signal: int
    """Number of the signal received; 0 if there was none."""


NOTHING = StopReasons(stop=False, interrupt=False, signal=0)


def is_main_process() -> bool:
    """Say whether this is the process that observes and writes: the first."""
    return jax.process_index() == 0


def from_main_process(values: Mapping[str, float]) -> dict[str, float]:
    """Give the lead's values on every process, bit for bit; all must call it, with equal names.

    >>> from_main_process({"time/epoch_seconds": 0.5})
    {'time/epoch_seconds': 0.5}
    """
    if jax.process_count() == 1:
        return dict(values)
    bits = np.array(list(values.values()), np.float64).view(np.uint32)
    shared = np.ascontiguousarray(_gathered(bits)[0]).view(np.float64)
    return dict(zip(values, shared.tolist(), strict=True))


def agree_on_stop(ending: StopReasons) -> StopReasons:
    """Give what all processes do next, the same on each of them; all must call it.

    Every process decides by what was gathered from all, never by what it saw alone: a signal or an
    interrupt of one ends them all at this event.

    Raises:
        RuntimeError: some state says stop and some does not: their hooks saw different metrics.

    >>> agree_on_stop(StopReasons(stop=False, interrupt=False, signal=15))
    StopReasons(stop=False, interrupt=False, signal=15)
    """
    if jax.process_count() == 1:
        return ending
    seen = _gathered(np.array(ending, np.int32))
    stops = seen[:, 0].astype(bool)
    if stops.any() != stops.all():
        raise RuntimeError(
            f"processes {np.flatnonzero(stops).tolist()} decided to stop and the others did not: "
            "a control hook must be a function of state and metrics alone, which are the same "
            "everywhere"
        )
    return StopReasons(bool(stops[0]), bool(seen[:, 1].any()), int(seen[:, 2].max()))


def check_same(what: str) -> None:
    """Check that every process is about to do the same thing; all must call it.

    Args:
        what: that it is about to do, described.

    Raises:
        RuntimeError: another process is about to do something else.
    """
    if jax.process_count() == 1:
        return
    digest = np.frombuffer(xxhash.xxh3_64_digest(what.encode()), np.uint32)
    seen = _gathered(digest)
    if others := [p for p in range(len(seen)) if not np.array_equal(seen[p], digest)]:
        raise RuntimeError(
            f"process {jax.process_index()} runs something else than {others}: epochs, phases and "
            f"hooks must be the same everywhere (observers run on process 0 alone, and are listed "
            f"by all); here: {what}"
        )


@contextlib.contextmanager
def fail_together(what: str) -> Iterator[None]:
    """Do something that may fail on one process alone, and then fail on all of them at once.

    All must call it, and what is done within must wait for no other process.

    Args:
        what: is done, for the message of those that it did not fail on: `saving`.

    Raises:
        RuntimeError: it failed on another process.

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
    failed = np.flatnonzero(_gathered(np.array([failure is not None], np.int32))[:, 0]).tolist()
    if failure is not None:
        raise failure
    if failed:
        raise RuntimeError(
            f"{what} failed on process {', '.join(map(str, failed))}, whose own error says why; "
            f"process {jax.process_index()} ends with it"
        )


def gather_values(values: Sequence[int]) -> list[tuple[int, ...]]:
    """Give what each process has, on all of them; all must call it.

    Args:
        values: as many on each, between -2**63 and 2**63.

    >>> gather_values([3, -1])
    [(3, -1)]
    """
    if jax.process_count() == 1:
        return [tuple(values)]
    words = _gathered(np.array(values, np.int64).view(np.uint32))
    return [tuple(np.ascontiguousarray(row).view(np.int64).tolist()) for row in words]


def _gathered(values: np.ndarray) -> np.ndarray:
    """Give `[process, ...]`: everyone's values, on every process."""
    return np.asarray(multihost_utils.process_allgather(values))
