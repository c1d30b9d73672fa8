"""Hooks that go back to the last good state where a run went wrong, and let it try again."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hooks.base import stateful
from hooks.control.good_states import find_newest_good, inspect_state, restore_snapshot
from hooks.control.stopping import find_first_nonfinite
from trainer import Hook, TrainState
from trainer.checks.modes import Mode, resolve_mode
from trainer.checks.paths import to_absolute_path
from trainer.state import read_step_count
from trainer.supervised.hyperparams import check_hyperparam, hyperparam, set_hyperparam

log = logging.getLogger("entracte")

EPOCHS = 16
"""How many of the epochs at which a hook returned it remembers, the latest ones."""

FLOOR = 0.01
"""The least standard deviation that is reckoned with, as a share of the mean's size."""

RollbackState = dict[str, Any]

FaultDetector = Callable[[RollbackState, Mapping[str, float]], tuple[RollbackState, list[str]]]
"""`(memory, metrics) -> (what to remember if all is well, what is wrong)`."""


def roll_back_on_nan(
    *metrics: str,
    max_rollbacks: int = 3,
    learning_rate_scale: float | None = None,
    directory: str | os.PathLike[str] | None = None,
) -> Hook:
    """Return to the last good state when a metric or a parameter is not finite.

    Parameters, optimizer, `model_state` and `carry` go back; epoch, step and how far a stream was
    read go on, so that other data comes and commits keep their numbers. A state is good if
    parameters and `model_state` are finite and nothing in the optimizer's state is nan. What other
    hooks remember stays: list this one before them, behind what writes the metrics that it reads.

    Args:
        metrics: to look at, such as `train/loss`; where one is missing, the hook does not fire.
            None named: all of the event.
        max_rollbacks: how often in the whole run; the time after, the good state is put back and
            the run stops with a report.
        learning_rate_scale: factor of the learning rate at each return, in (0, 1).
        directory: of the run, whose newest good commit is returned to. None keeps the good state in
            `state.hook_state`, which doubles the bytes of a commit.

    Raises:
        ValueError: a setting is out of range; before training, the state to begin with is not
            good, or its optimizer has no learning rate that can be scaled.

    Source: A. Chowdhery et al., PaLM: Scaling Language Modeling with Pathways, 2022, section 5.1.

    >>> import jax, jax.numpy as jnp
    >>> state = TrainState.create(params={"w": jnp.ones(2)}, rng=jax.random.key(0))
    >>> hook = roll_back_on_nan("train/loss")
    >>> state = hook(state, {"train/loss": 0.5})
    >>> bad = state.replace(params={"w": jnp.array([1.0, jnp.nan])})
    >>> hook(bad, {"train/loss": 0.4}).params["w"]
    Array([1., 1.], dtype=float32)
    """

    def judge(
        memory: RollbackState, values: Mapping[str, float]
    ) -> tuple[RollbackState, list[str]]:
        looked_at = {name: float(values[name]) for name in sorted(metrics or values)}
        return {}, [f"{n} is {v}" for n, v in looked_at.items() if not math.isfinite(v)]

    plan = _plan(max_rollbacks, learning_rate_scale, directory)
    return _make_rollback_hook(plan.named("roll_back_on_nan"), metrics, plan, {}, judge)


def roll_back_on_spike(
    metric: str,
    *,
    window: int = 10,
    threshold: float = 6.0,
    mode: str | None = None,
    max_rollbacks: int = 3,
    learning_rate_scale: float | None = None,
    directory: str | os.PathLike[str] | None = None,
) -> Hook:
    """Return to the last good state when a metric is far worse than it was, or not finite.

    Far worse is by more than `threshold` standard deviations of the last `window` good values. In
    all else it is `roll_back_on_nan`, which need not stand beside it.

    Args:
        metric: to watch, such as `train/loss`; where it is missing, the hook does not fire.
        window: how many values to compare with; before there are as many, nothing is a spike.
            Values that were rolled back do not count.
        threshold: standard deviations of the window, each reckoned as 1% of the mean's size at
            least, so that a flat window does not make every change a spike.
        mode: `min` if smaller is better, `max` if larger is; None goes by the metric's name.
        times, learning_rate_scale, directory: as in `roll_back_on_nan`.

    Raises:
        ValueError: as `roll_back_on_nan`.

    Source: as `roll_back_on_nan`.

    >>> import jax, jax.numpy as jnp
    >>> state = TrainState.create(params={"w": jnp.ones(2)}, rng=jax.random.key(0))
    >>> hook = roll_back_on_spike("train/loss", window=2)
    >>> for loss in (1.0, 1.1):
    ...     state = hook(state, {"train/loss": loss})
    >>> hook(state.replace(params={"w": jnp.zeros(2)}), {"train/loss": 9.0}).params["w"]
    Array([1., 1.], dtype=float32)
    """
    way = resolve_mode("roll_back_on_spike", metric, mode)
    if window < 2:
        raise ValueError(f"window must be at least 2 values; got {window}")
    if not 0 < threshold < math.inf:
        raise ValueError(f"threshold must be a positive number of deviations; got {threshold}")

    def judge(
        memory: RollbackState, values: Mapping[str, float]
    ) -> tuple[RollbackState, list[str]]:
        value, before = float(values[metric]), memory["values"]
        if not math.isfinite(value):
            return {}, [f"{metric} is {value}"]
        worse = compute_z_score(value, before, way)
        if worse > threshold:
            mean = f"{before.mean():.4g}, the mean of the last {window}"
            return {}, [f"{metric} is {value:.4g}, {worse:.1f} deviations worse than {mean}"]
        return {"values": np.append(before[1:], value)}, []

    plan = _plan(max_rollbacks, learning_rate_scale, directory)
    name = plan.named(f"roll_back_on_spike/{metric}/{window}")
    return _make_rollback_hook(name, (metric,), plan, {"values": np.full(window, np.nan)}, judge)


def compute_z_score(value: float, window: np.ndarray, mode: Mode = "min") -> float:
    """Give by how many standard deviations a value is worse than the mean of a window.

    Args:
        value: to judge.
        window: float64 `[window]`, nan where there is no value yet.
        mode: `min` if smaller is better, `max` if larger is.

    Returns:
        Negative if it is better; 0.0 where the window is not full, or all zeros: without a scale.

    >>> compute_z_score(7.0, np.array([1.0, 3.0]))     # mean 2, deviation 1
    5.0
    """
    if np.isnan(window).any():
        return 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        mean = window.mean()
        deviation = max(window.std(), FLOOR * abs(mean))
        worse = value - mean if mode == "min" else mean - value
        return float(worse / deviation) if 0 < deviation < math.inf else 0.0


class _Plan(NamedTuple):
    times: int
    scale: float | None
    directory: Path | None

    def named(self, name: str) -> str:
        """Name what is remembered, which has another structure without the good state."""
        return name if self.directory is None else f"{name}/directory"


def _plan(times: int, scale: float | None, directory: str | os.PathLike[str] | None) -> _Plan:
    if times < 1:
        raise ValueError(f"times must be at least 1; got {times}")
    if scale is not None and not 0 < scale < 1:
        raise ValueError(f"learning_rate_scale must be in (0, 1), or None; got {scale}")
    return _Plan(
        times, scale, None if directory is None else to_absolute_path(directory, "roll_back")
    )


def _make_rollback_hook(
    name: str, reads: tuple[str, ...], plan: _Plan, first: RollbackState, judge: FaultDetector
) -> Hook:
    """Make the hook: it remembers what `judge` does, when it went back, and the good state."""
    copying = plan.directory is None

    def init(state: TrainState) -> RollbackState:
        faults, good = inspect_state(state, copying=copying)
        if faults:
            raise ValueError(
                f"hook {name!r} needs a good state to begin with; got one in which {faults[0]}: "
                "begin with finite parameters, or go on from an earlier commit"
            )
        if plan.scale is not None:
            check_hyperparam(
                f"hook {name!r} with learning_rate_scale",
                state.opt_state,
                "learning_rate",
                instead="leave learning_rate_scale out",
            )
        return {**first, **good, "epochs": np.full(EPOCHS, -1, np.int32), "count": 0}

    def update(
        memory: RollbackState, state: TrainState, metrics: Mapping[str, float]
    ) -> tuple[RollbackState, TrainState]:
        faults, good = inspect_state(state, copying=copying)
        news, wrong = judge(memory, metrics)
        if wrong + faults:
            return _roll_back(name, plan, memory, state, _cause(wrong + faults, metrics, state))
        news |= good
        return {**memory, **news} if news else memory, state

    return dataclasses.replace(stateful(name, init, update), event="epoch", reads=reads)


def _roll_back(
    name: str, plan: _Plan, memory: RollbackState, state: TrainState, cause: str
) -> tuple[RollbackState, TrainState]:
    """Return to the good state, and stop if that was done often enough; say so in any case."""
    epoch, count = int(state.epoch), memory["count"]
    latest = memory["epochs"][memory["epochs"] >= 0]
    before = f"{name} had returned {count} times before, last at epochs {latest}"
    where = plan.directory
    found = (memory["good"], count) if where is None else find_newest_good(name, where, state)
    if found is None:
        log.error(
            f"stopping at epoch {epoch}, the state as it is: {cause}; {before}, and {where} holds "
            "no good commit of an earlier epoch. Place save_checkpoints(..., max_cost=None) with "
            "this directory in the chain; before its first commit, try a smaller learning rate"
        )
        return memory, state.replace(stop=True)
    good, scaled = found
    last = count >= plan.times
    if plan.scale is not None:
        scale = plan.scale ** (count + (not last) - scaled)
        scaled_state = set_hyperparam(good["opt_state"], "learning_rate", lambda r: r * scale)
        good = {**good, "opt_state": scaled_state}
    went = f"to the state of epoch {int(good['epoch'])}"
    if rates := hyperparam(good["opt_state"], "learning_rate"):
        shown = (f"{rate:.4g}" for each in rates.values() for rate in np.ravel(each))
        went += f", learning rate {', '.join(shown)}"
    if last:
        log.error(
            f"stopping at epoch {epoch}, back {went}: {cause}; {before}. Try a smaller learning "
            "rate, a longer warm-up or optax.clip_by_global_norm, or look at these epochs' data"
        )
        return memory, restore_snapshot(good, state).replace(stop=True)
    log.warning(f"rolled back at epoch {epoch} ({count + 1} of {plan.times}) {went}: {cause}")
    epochs = np.append(memory["epochs"][1:], np.int32(epoch))
    memory = {**memory, "epochs": epochs, "count": count + 1}
    return memory | ({"good": good} if "good" in memory else {}), restore_snapshot(good, state)


def _cause(faults: list[str], metrics: Mapping[str, float], state: TrainState) -> str:
    """Name the first three, and the step at which it began, where a trace tells."""
    more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
    first = find_first_nonfinite(metrics, read_step_count(state))
    began = f" (first not finite: {first[1]} at step {first[0]})" if first else ""
    return ", ".join(faults[:3]) + more + began
