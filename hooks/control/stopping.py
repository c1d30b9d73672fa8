"""Hooks that end a run: no improvement, a target reached, values not finite, or a time limit."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import NamedTuple

import numpy as np

from hooks.base import stateful
from hooks.combining import Chain, chain
from trainer import Hook, Interrupt, TrainState
from trainer.checks.arguments import require_integer, require_number
from trainer.checks.modes import improvement, resolve_mode, worst
from trainer.host.processes import from_main_process
from trainer.state import read_step_count

log = logging.getLogger("entracte")


class EarlyStopping(NamedTuple):
    """The hook state of `stop_early`."""

    best: float
    """The best value so far; infinite at first."""
    since: int
    """Evaluations since the best value."""


def stop_early(
    metric: str, *, patience: int, mode: str | None = None, min_delta: float = 0.0
) -> Hook:
    """Stop when a metric has not improved for `patience` evaluations in a row.

    An epoch without the metric does not count. NaN is no improvement.

    Args:
        metric: to watch, such as `val/loss`.
        patience: evaluations without improvement after which to stop.
        mode: `min` if smaller is better, `max` if larger is; None goes by the metric's name.
        min_delta: an improvement is more than this.

    Raises:
        ValueError: a setting is out of range, or the name does not tell a missing mode.

    Source: L. Prechelt, Early Stopping - But When?, 1998.

    >>> import jax
    >>> state = TrainState.create(params={}, rng=jax.random.key(0))
    >>> hook = stop_early("val/loss", patience=2)
    >>> for loss in (0.5, 0.6, 0.7):
    ...     state = hook(state, {"val/loss": loss})
    >>> state.stop, state.hook_state["stop_early/val/loss"]
    (True, EarlyStopping(best=0.5, since=2))
    """
    require_integer("patience", patience, 1)
    if min_delta < 0:
        raise ValueError(f"min_delta must not be negative; got {min_delta}")
    mode = resolve_mode("stop_early", metric, mode)

    def update(
        before: EarlyStopping, state: TrainState, metrics: Mapping[str, float]
    ) -> tuple[EarlyStopping, TrainState]:
        value = float(metrics[metric])
        if improvement(before.best, value, mode) > min_delta:
            return EarlyStopping(best=value, since=0), state
        after = before._replace(since=before.since + 1)
        if after.since < patience:
            return after, state
        message = "stopping: %s has not been better than %.6g for %d evaluations"
        log.info(message, metric, *after)
        return after, state.replace(stop=True)

    first = EarlyStopping(best=worst(mode), since=0)
    return stateful(f"stop_early/{metric}", lambda state: first, update, reads=(metric,))


def stop_at_return(target: float, *, metric: str = "rollout/return", window: int = 1) -> Hook:
    """Stop when the mean of a metric's last values reaches a target.

    An epoch without the metric does not count, such as one in which no episode of a rollout ended.

    Args:
        target: to reach, such as 475.0.
        metric: to watch, such as `val/return`.
        window: number of values in the mean; there must be as many.

    Raises:
        ValueError: the target is not finite, or the window is below 1.

    >>> import jax
    >>> state = TrainState.create(params={}, rng=jax.random.key(0))
    >>> hook = stop_at_return(10.0, window=2)
    >>> for value in (8.0, 11.0, 9.0):
    ...     state = hook(state, {"rollout/return": value})
    >>> state.stop, state.hook_state["stop_at_return/rollout/return"].tolist()
    (True, [11.0, 9.0])
    """
    if not math.isfinite(require_number("target", target)):
        raise ValueError(f"target must be a finite return; got {target}")
    require_integer("window", window, 1)

    def update(
        last: np.ndarray, state: TrainState, metrics: Mapping[str, float]
    ) -> tuple[np.ndarray, TrainState]:
        last = np.append(last[1:], float(metrics[metric]))
        if not last.mean() >= target:  # nan until the window is full
            return last, state
        log.info("stopping: %s reached %.6g over %d values", metric, last.mean(), window)
        return last, state.replace(stop=True)

    name = f"stop_at_return/{metric}"
    return stateful(name, lambda state: np.full(window, np.nan), update, reads=(metric,))


def stop_on_nan() -> Hook:
    """Stop when a metric of this event is not finite; log the first one and, by traces, its step.

    >>> import jax
    >>> state = TrainState.create(params={}, rng=jax.random.key(0))
    >>> stop_on_nan()(state, {"train/loss": float("nan")}).stop
    True
    """

    def run(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        measured = (name for name in metrics if not name.startswith("time/"))
        wrong = sorted(name for name in measured if not math.isfinite(metrics[name]))
        if not wrong:
            return state
        steps = read_step_count(state)
        step, name = find_first_nonfinite(metrics, steps) or (steps, wrong[0])
        log.error("stopping: %s is not finite at step %d (%s)", name, step, ", ".join(wrong))
        return state.replace(stop=True)

    return Hook(run, "stop_on_nan")


def time_limit(seconds: float | timedelta) -> Chain:
    """Interrupt the run before it exceeds a time limit, so that the next run resumes it.

    The run is interrupted if another epoch as long as the longest so far, hooks included, would
    exceed the limit, counted from `start` in this process. The first epoch's length leaves out
    compilation. The event's checkpoint is saved, `end` hooks do not run, and the next run has the
    whole limit again. The last epoch, and one that stops the run, are not interrupted. On several
    processes the main process's clock decides.

    Args:
        seconds: limit, or a `datetime.timedelta`; leave a margin for the last checkpoint.

    Raises:
        ValueError: the limit is not positive.

    >>> import jax
    >>> state = TrainState.create(params={}, rng=jax.random.key(0))
    >>> time_limit(3600.0)(state, {"time/epoch_seconds": 12.0}) is state
    True
    >>> time_limit(10.0)(state, {"time/epoch_seconds": 12.0})
    Traceback (most recent call last):
        ...
    trainer.hook.Interrupt: time limit: of 10 s ... have passed, and an epoch takes up to 12
    """
    if isinstance(seconds, timedelta):
        seconds = seconds.total_seconds()
    if not require_number("seconds", seconds) > 0:
        raise ValueError(f"seconds must be positive; got {seconds}")
    started = time.monotonic()
    last: float | None = None
    longest = 0.0

    def start(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        nonlocal started, last, longest
        started, last, longest = time.monotonic(), None, 0.0
        return state

    def run(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        nonlocal last, longest
        if state.stop or int(state.epoch) == getattr(metrics, "epochs", None):
            return state
        now = time.monotonic()
        took = metrics["time/epoch_seconds"] if last is None else now - last
        last, longest = now, max(longest, took)
        times = from_main_process({"passed": now - started, "longest": longest})
        if times["passed"] + times["longest"] <= seconds:
            return state
        raise Interrupt(
            f"time limit: of {seconds:.6g} s {times['passed']:.4g} have passed, and an epoch takes "
            f"up to {times['longest']:.4g}"
        )

    return chain(
        Hook(start, "time_limit/start", event="start"),
        Hook(run, "time_limit", event="epoch", reads=("time/epoch_seconds",)),
    )


def find_first_nonfinite(metrics: Mapping[str, float], step: int) -> tuple[int, str] | None:
    """Find the first step at which a metric's trace is not finite, and the metric's name.

    Args:
        metrics: of an event.
        step: number of the event's last step, which is the last entry of every trace.
    """
    found = [
        (step - len(trace) + 1 + int(wrong[0]), name)
        for name, trace in getattr(metrics, "steps", {}).items()
        if (wrong := np.flatnonzero(~np.isfinite(trace))).size
    ]
    return min(found, default=None)
