"""Long scans split into a few dispatches, between which a run can report progress."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection
from typing import Any

import jax

from trainer.host.time_spans import StepCounter
from trainer.phases.compilation import compile_ahead
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

    Args:
        steps: of the scan.
        operations: of its matrix products and convolutions, as `count_flops` counts them.
        devices: that it runs on. On several devices the scan stays whole.

    Returns:
        For a long scan the largest divisor of `steps`, up to 16, that leaves at least two steps per
        dispatch; else 1.

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


def compile_dispatches(
    scanned: ScannedStep, state: TrainState, piece: Any, count: int, *, donate: bool
) -> Callable[..., tuple[TrainState, None, list[jax.Array]]]:
    """Compile a scan that runs in several dispatches, with the same bits as in one.

    Two functions are compiled: the order of an epoch's data, and the steps of one dispatch.

    Args:
        scanned: the step to repeat.
        state: the device part, to compile for.
        piece: of data, to compile for.
        count: of dispatches, a divisor of the steps.
        donate: whether the state's buffers may be reused.

    Returns:
        `(state, piece, advance) -> (state, None, packed)`, `packed` uint32 `[steps / count, words]`
        of each dispatch.
    """

    def begin(state: TrainState, piece: Any) -> list[PyTree]:
        rows = scanned.order(state, piece)
        each = len(jax.tree.leaves(rows)[0]) // count
        places = [slice(first * each, (first + 1) * each) for first in range(count)]
        return [jax.tree.map(operator.itemgetter(place), rows) for place in places]

    def advance_state(
        state: TrainState, piece: Any, rows: PyTree
    ) -> tuple[TrainState | None, jax.Array]:
        after, packed, _ = scanned.packed(state, piece, rows)
        return after if scanned.updates_state else None, packed

    started = compile_ahead(begin, state, piece)
    rows = jax.eval_shape(begin, state, piece)[0]
    few = compile_ahead(advance_state, state, piece, rows, donate_argnums=(0,) if donate else ())

    def run(
        state: TrainState, piece: Any, advance: StepCounter | None = None
    ) -> tuple[TrainState, None, list[jax.Array]]:
        tables = []
        for rows in started(state, piece):
            after, packed = few(state, piece, rows)
            state = after if scanned.updates_state else state
            tables.append(packed)
            if advance is not None:
                advance.add(len(packed), packed)
        return state, None, tables

    return run
