"""A long scan in a few dispatches of equal bits, between which a run can report progress."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax

from trainer.host.time_spans import StepCounter
from trainer.phases.buffers.passed_leaves import LeafSplit
from trainer.phases.compilation import lower_ahead
from trainer.phases.executors import ScannedStep
from trainer.state import PyTree, TrainState

AT_MOST = 16
"""Dispatches per scan: a device queues twice as many before the host has to wait."""


class Shortest(NamedTuple):
    """The least that a dispatch of a split scan computes."""

    operations: int
    steps: int


SHORTEST = {"cpu": Shortest(operations=10**11, steps=16)}
"""By platform. 10^11 operations are about a second of matrix products on a CPU, of which the 0.1 ms
of a dispatch are nothing. But each dispatch there takes the memory of its temporaries anew from the
operating system, and touches it for the first time: a third of one step of a small transformer."""

SHORTEST_ELSEWHERE = Shortest(operations=10**14, steps=2)
"""The same for GPUs and TPUs, which keep the memory."""


def choose_dispatch_count(steps: int, operations: int, devices: Collection[Any]) -> int:
    """Choose the number of dispatches of equal length for a scan, never by a clock.

    It is the largest divisor of `steps`, up to 16, that leaves each dispatch `SHORTEST` at least,
    of the scan's `operations` too; on several devices it is 1.

    >>> cpu = jax.devices("cpu")[:1]
    >>> (choose_dispatch_count(480, 10**13, cpu), choose_dispatch_count(481, 10**13, cpu),
    ...  choose_dispatch_count(480, 10**12, cpu), choose_dispatch_count(20, 10**13, cpu))
    (16, 13, 10, 1)
    """
    if len(devices) > 1:
        return 1
    least = SHORTEST.get(next(iter(devices)).platform, SHORTEST_ELSEWHERE)
    counts = (count for count in range(AT_MOST, 1, -1) if steps % count == 0)
    enough = (
        count
        for count in counts
        if steps >= count * least.steps and operations >= count * least.operations
    )
    return next(enough, 1)


DispatchRunner = Callable[..., tuple[TrainState, None, list[jax.Array]]]
"""`(state, piece, advance) -> (state, None, packed)`, `packed` uint32 `[steps / count, words]` of
each dispatch."""


def lower_dispatches(
    scanned: ScannedStep,
    state: TrainState,
    piece: Any,
    count: int,
    split: LeafSplit,
    *,
    donate: bool,
) -> Callable[[], DispatchRunner]:
    """Lower a scan that runs in several dispatches, with the same bits as in one.

    Two functions are lowered: the order of an epoch's data, and the steps of one dispatch. The
    number of dispatches, `count`, divides the steps. Leaves that a step passes through, by `split`,
    are not copied.

    Returns:
        A function that compiles them, on any thread.
    """

    def begin(state: TrainState, piece: Any) -> list[PyTree]:
        rows = scanned.order(state, piece)
        parts = jax.tree.map(lambda row: row.reshape(count, -1, *row.shape[1:]), rows)
        return [jax.tree.map(operator.itemgetter(part), parts) for part in range(count)]

    def advance_state(
        changing: list[Any], passed: list[Any], piece: Any, rows: PyTree
    ) -> tuple[list[Any] | None, jax.Array]:
        after, packed, _ = scanned.packed(split.join(changing, passed), piece, rows)
        return split.split(after)[0] if scanned.updates_state else None, packed

    lowered_begin = lower_ahead(begin, state, piece)
    rows = jax.eval_shape(begin, state, piece)[0]
    donated = (0,) if donate else ()
    arguments = *split.split(state), piece, rows
    lowered = lower_ahead(advance_state, *arguments, donate_argnums=donated)

    def finish() -> DispatchRunner:
        begun, few = lowered_begin(), lowered()

        def run(
            state: TrainState, piece: Any, advance: StepCounter | None = None
        ) -> tuple[TrainState, None, list[jax.Array]]:
            tables = []
            changing, passed = split.split(state)
            for rows in begun(state, piece):
                after, packed = few(changing, passed, piece, rows)
                changing = after if scanned.updates_state else changing
                tables.append(packed)
                if advance is not None:
                    advance.add(len(packed), packed)
            return split.join(changing, passed), None, tables

        return run

    return finish
