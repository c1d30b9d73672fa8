"""Metrics of one epoch: kept on the device until a hook, or the end of the epoch, needs them."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from trainer.host.exception_notes import annotate_errors
from trainer.phases.host_metrics.pending_metrics import PendingMetrics
from trainer.phases.metrics import Metrics
from trainer.state import PyTree, check_step_limit


class MetricReader:
    """Reads what the phases of one epoch measured, in as few transfers as possible.

    Args:
        epochs: total of the run, for hooks.
        where: the epoch, for notes on errors.
    """

    def __init__(self, *, epochs: int, where: str) -> None:
        self.began = time.perf_counter()
        """When the epoch began: its time ends when its metrics are read."""
        self.steps = 0
        """Steps before this epoch."""
        self.taken = 0
        """Steps of this epoch, of the phases read so far."""
        self._epochs, self._where = epochs, where
        self._pending: list[PendingMetrics] = []
        self._values: dict[str, float] = {}
        self._traces: dict[str, np.ndarray] = {}

    def add(self, measured: PendingMetrics) -> None:
        """Add what a phase measured; it stays on the device."""
        self._pending.append(measured)

    def read(self, output: PyTree) -> Metrics:
        """Wait for all phases so far, and return their metrics; `output` is the latest phase's."""
        for measured in self._pending:
            with annotate_errors(f"in phase {measured.phase.name!r} of {self._where}"):
                values, traces, taken = measured.read()
            self._values |= values
            self._traces |= traces
            self.taken += taken
        self._pending = []
        check_step_limit(self.steps, self.taken)
        return self._make(output)

    def read_all(self, output: PyTree, hook_times: dict[str, float]) -> Metrics:
        """Return the metrics of the epoch, with the times of this process."""
        self.read(output)
        seconds = time.perf_counter() - self.began
        times = {"time/epoch_seconds": seconds, "time/steps_per_second": self.taken / seconds}
        self._values |= times | hook_times
        return self._make(output)

    def _make(self, output: Any) -> Metrics:
        return Metrics(self._values, steps=self._traces, output=output, epochs=self._epochs)
