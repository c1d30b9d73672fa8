"""Metrics of a phase on the device, and how they become the epoch's values."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from trainer.host.time_spans import span
from trainer.phases.compiled_phase import CompiledPhase, Packed, fetch_packed
from trainer.phases.host_metrics.collected import COLLECTED, SplitMetrics, compute_split_metrics
from trainer.phases.in_place_changes import read_only
from trainer.phases.reductions import (
    Finalize,
    finalize_members,
    finalize_values,
    reduce_pieces,
)

Reduced = tuple[dict[str, float], dict[str, np.ndarray]]
"""Values and traces, by name."""


class _Measuring(Protocol):
    """What is read of a `Phase` to reduce its metrics."""

    @property
    def name(self) -> str: ...
    @property
    def reduce(self) -> Mapping[str, str]: ...
    @property
    def finalize(self) -> Finalize | None: ...
    @property
    def members(self) -> int | None: ...
    @property
    def passes(self) -> Sequence[_Measuring]: ...
    @property
    def split_metrics(self) -> Mapping[str, SplitMetrics]: ...


class PendingMetrics(NamedTuple):
    """Metrics of one epoch of a phase, still on the device."""

    phase: _Measuring
    packed: list[tuple[CompiledPhase, Packed]]

    def read(self) -> tuple[dict[str, float], dict[str, np.ndarray], int]:
        """Wait for the phase; return (values, traces, optimizer steps taken)."""
        phase, pieces, taken = self.phase, [], 0
        with span("wait", phase.name):
            jax.block_until_ready([packed for _, packed in self.packed])  # lets signals through
            arrived = [(compiled, fetch_packed(packed)) for compiled, packed in self.packed]
        for compiled, words in arrived:
            numbers = compiled.layout.unpack(words, rows=compiled.stepwise)
            pieces.append(numbers[0])
            taken += int(numbers[1].sum())
        if phase.passes:
            values, traces = _reduce_passes(phase.passes, pieces[0]["phases"], pieces[0]["live"])
        else:
            live = None if phase.members is None else numbers[2].astype(bool)
            values, traces = _reduce_phase(phase, pieces, live)
        read_only(traces)
        return values, traces, taken


def _reduce_phase(
    phase: _Measuring, pieces: Sequence[Mapping[str, Any]], live: np.ndarray | None
) -> Reduced:
    values, traces = reduce_pieces(pieces, phase.reduce, phase.name, live)
    if live is None or phase.finalize is None:
        values = finalize_values(phase.finalize, values, phase.name)
    else:
        values = finalize_members(phase.finalize, values, live, phase.name)
    if COLLECTED in pieces[0]:
        values |= compute_split_metrics(pieces, phase.split_metrics, phase.name, live)
    return values, traces


def _reduce_passes(
    phases: Sequence[_Measuring], measured: Mapping[str, Any], live: np.ndarray | None
) -> Reduced:
    """Reduce what passes measured as if each pass were a piece of the epoch.

    Args:
        phases: of a pass.
        measured: by phase, by metric: `[passes]`, or `[passes, steps]`; of a population,
            `[passes, members]`, or `[passes, members, steps]`.
        live: bool `[passes, members]` of a population, which only hooks change.
    """
    values: dict[str, float] = {}
    traces: dict[str, np.ndarray] = {}
    for phase in phases:
        now = None if phase.members is None or live is None else live[-1].astype(bool)
        join = functools.partial(_join_passes, lead=0 if now is None else 1)
        joined = jax.tree.map(join, measured[phase.name])
        one = _reduce_phase(phase, [joined], now)
        values |= one[0]
        traces |= one[1]
    return values, traces


def _join_passes(leaf: np.ndarray, lead: int) -> np.ndarray:
    """Join passes and steps, `[passes, (members,) ...]`, to the last axis, after `lead` others."""
    rows = np.moveaxis(leaf, 0, lead)
    return rows.reshape(*rows.shape[:lead], -1)
