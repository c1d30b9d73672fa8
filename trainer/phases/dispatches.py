"""A long scan in a few dispatches of equal bits, between which a run can report progress."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection
from typing import Any

import jax

from trainer.host.time_spans import StepCounter
from trainer.phases.buffers.passed_leaves import LeafSplit
from trainer.phases.compilation import lower_ahead
from trainer.phases.executors import ScannedStep
from trainer.state import PyTree, TrainState

AT_MOST = 16
"""Dispatches per scan: a device queues twice as many before the host has to wait."""

LONG = {"cpu": 10**11}
"""Operations from which a scan is split, by platform: about a second of matrix products, so that
a dispatch, some 0.1 ms, takes less than a hundredth of its computation."""

LONG_ELSEWHERE = 10**14
"""The same for GPUs and TPUs."""


def choose_dispatch_count(steps: int, operations: int, devices: Collection[Any]) -> int:
    """Choose the number of dispatches of equal length for a scan, never by a clock.

    For a long scan, by its `operations`, it is the largest divisor of `steps`, up to 16, that
    leaves at least two steps per dispatch; else, and on several devices, it is 1.

    >>> cpu = jax.devices("cpu")[:1]
    >>> (choose_dispatch_count(480, 10**12, cpu), choose_dispatch_count(481, 10**12, cpu),
    ...  choose_dispatch_count(480, 10**9, cpu))
    (16, 13, 1)
    """
    platform = next(iter(devices)).platform
    if len(devices) > 1 or operations < LONG.get(platform, LONG_ELSEWHERE):
        return 1
    divisors = (count for count in range(2, AT_MOST + 1) if steps % count == 0)
    return max((count for count in divisors if 2 * count <= steps), default=1)


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
