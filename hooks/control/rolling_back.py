"""Hooks that return to the last good state when a run diverges, and let it try again."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hooks.base import stateful
from hooks.control.good_states import find_newest_good, inspect_state, restore_snapshot
from hooks.control.stopping import find_first_nonfinite
from trainer import Hook, TrainState
from trainer.checks.modes import Mode, resolve_mode
from trainer.checks.paths import to_absolute_path
from trainer.state import read_step_count
from trainer.supervised.hyperparams import check_hyperparam, get_hyperparam, set_hyperparam

log = logging.getLogger("entracte")

EPOCHS = 16
"""How many of the latest epochs with a rollback the hook state keeps."""

FLOOR = 0.01
"""Smallest standard deviation used, as a share of the mean's absolute value."""

RollbackState = dict[str, Any]

Detected = tuple[RollbackState, list[str]]
"""What to change in the hook state if all is well, and faults."""


def roll_back_on_nan(
    *metrics: str,
    max_rollbacks: int = 3,
    learning_rate_scale: float | None = None,
    directory: str | os.PathLike[str] | None = None,
) -> Hook:
    """Return to the last good state when a metric or a parameter is not finite.

    Parameters, optimizer, `model_state` and `carry` are restored. Epoch, step and stream positions
    are not, so the run continues with other data. A state is good if parameters and `model_state`
    are finite and the optimizer's state has no nan. The states of other hooks are not restored:
    place this hook before them, after what writes its metrics.

    Args:
        metrics: to check, such as `train/loss`; the hook does not fire if one is missing. If none
            is named, all metrics of the event.
        max_rollbacks: in the whole run; at the next fault the good state is restored and the run
            stops with a report.
        learning_rate_scale: factor of the learning rate at each rollback, in (0, 1).
        directory: run directory whose newest good checkpoint is restored. None keeps the good state
            in `state.hook_state`, which doubles the size of a checkpoint.

    Raises:
        ValueError: a setting is out of range; before training, the initial state is not good, or
            its optimizer has no learning rate that can be scaled.

    Source: A. Chowdhery et al., PaLM: Scaling Language Modeling with Pathways, 2022, section 5.1.

    >>> import jax, jax.numpy as jnp
    >>> state = TrainState.create(params={"w": jnp.ones(2)}, rng=jax.random.key(0))
    >>> hook = roll_back_on_nan("train/loss")
    >>> state = hook(state, {"train/loss": 0.5})
    >>> bad = state.replace(params={"w": jnp.array([1.0, jnp.nan])})
    >>> hook(bad, {"train/loss": 0.4}).params["w"]
    Array([1., 1.], dtype=float32)
    """

    def detect(before: RollbackState, values: Mapping[str, float]) -> Detected:
        checked = {name: float(values[name]) for name in sorted(metrics or values)}
        return {}, [f"{n} is {v}" for n, v in checked.items() if not math.isfinite(v)]

    limits = max_rollbacks, learning_rate_scale
    return _make_rollback_hook("roll_back_on_nan", metrics, {}, detect, *limits, directory)


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
    """Return to the last good state when a metric is far worse than before, or not finite.

    Far worse means by more than `threshold` standard deviations of the last `window` good values.
    All else, errors and source too, is as in `roll_back_on_nan`, which is not needed beside it.

    Args:
        metric: to watch, such as `train/loss`; the hook does not fire if it is missing.
        window: number of values to compare with; nothing is a spike before there are as many.
        threshold: in standard deviations of the window. A deviation is at least 1% of the mean's
            absolute value, so that a flat window does not turn every change into a spike.
        mode: `min` if smaller is better, `max` if larger is; None goes by the metric's name.
        max_rollbacks, learning_rate_scale, directory: as in `roll_back_on_nan`.

    Raises:
        ValueError: as `roll_back_on_nan`.

    >>> import jax, jax.numpy as jnp
    >>> state = TrainState.create(params={"w": jnp.ones(2)}, rng=jax.random.key(0))
    >>> hook = roll_back_on_spike("train/loss", window=2)
    >>> for loss in (1.0, 1.1):
    ...     state = hook(state, {"train/loss": loss})
    >>> hook(state.replace(params={"w": jnp.zeros(2)}), {"train/loss": 9.0}).params["w"]
    Array([1., 1.], dtype=float32)
    """
    resolved = resolve_mode("roll_back_on_spike", metric, mode)
    if window < 2:
        raise ValueError(f"window must be at least 2 values; got {window}")
    if not 0 < threshold < math.inf:
        raise ValueError(f"threshold must be a positive number of deviations; got {threshold}")

    def detect(before: RollbackState, values: Mapping[str, float]) -> Detected:
        value, last = float(values[metric]), before["values"]
        if not math.isfinite(value):
            return {}, [f"{metric} is {value}"]
        worse = compute_z_score(value, last, resolved)
        if worse > threshold:
            mean = f"{last.mean():.4g}, the mean of the last {window}"
            return {}, [f"{metric} is {value:.4g}, {worse:.1f} deviations worse than {mean}"]
        return {"values": np.append(last[1:], value)}, []

    limits = max_rollbacks, learning_rate_scale
    name, initial = f"roll_back_on_spike/{metric}/{window}", {"values": np.full(window, np.nan)}
    return _make_rollback_hook(name, (metric,), initial, detect, *limits, directory)


def compute_z_score(value: float, window: np.ndarray, mode: Mode = "min") -> float:
    """Compute by how many standard deviations a value is worse than the mean of a window.

    Args:
        value: to compare.
        window: float64 `[window]`, nan where there is no value yet.
        mode: `min` if smaller is better, `max` if larger is.

    Returns:
        Negative if it is better; 0.0 if the window is not full, or has no scale.

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


def _make_rollback_hook(
    name: str,
    reads: tuple[str, ...],
    initial: RollbackState,
    detect: Callable[[RollbackState, Mapping[str, float]], Detected],
    limit: int,
    scale: float | None,
    directory: str | os.PathLike[str] | None,
) -> Hook:
    """Make the hook. Its state holds that of `detect`, the rollbacks so far, and the good state."""
    if limit < 1:
        raise ValueError(f"max_rollbacks must be at least 1; got {limit}")
    if scale is not None and not 0 < scale < 1:
        raise ValueError(f"learning_rate_scale must be in (0, 1), or None; got {scale}")
    where = None if directory is None else to_absolute_path(directory, "roll_back")
    copying = where is None
    if not copying:
        name += "/directory"  # the hook state has another structure without the good state

    def init(state: TrainState) -> RollbackState:
        faults, good = inspect_state(state, copying=copying)
        if faults:
            raise ValueError(
                f"hook {name!r} needs a good state to start from; got one in which {faults[0]}: "
                "start with finite parameters, or resume from an earlier checkpoint"
            )
        if scale is not None:
            check_hyperparam(
                f"hook {name!r} with learning_rate_scale",
                state.opt_state,
                "learning_rate",
                instead="leave learning_rate_scale out",
            )
        return {**initial, **good, "epochs": np.full(EPOCHS, -1, np.int32), "count": 0}

    def update(
        before: RollbackState, state: TrainState, metrics: Mapping[str, float]
    ) -> tuple[RollbackState, TrainState]:
        faults, good = inspect_state(state, copying=copying)
        changes, wrong = detect(before, metrics)
        if wrong + faults:
            cause = _describe_faults(wrong + faults, metrics, state)
            return _roll_back(name, (limit, scale, where), before, state, cause)
        changes |= good
        return {**before, **changes} if changes else before, state

    return stateful(name, init, update, event="epoch", reads=reads)


def _roll_back(
    name: str,
    settings: tuple[int, float | None, Path | None],
    before: RollbackState,
    state: TrainState,
    cause: str,
) -> tuple[RollbackState, TrainState]:
    """Return to the good state, and stop if that was done often enough; log it in any case."""
    limit, scale, directory = settings
    epoch, count = int(state.epoch), before["count"]
    earlier = f"{name} had rolled back {count} times before, last at epochs "
    earlier += str(before["epochs"][before["epochs"] >= 0])
    if directory is None:
        good, scaled = before["good"], count
    elif found := find_newest_good(name, directory, state):
        good, scaled = found
    else:
        log.error(
            f"stopping at epoch {epoch}, the state as it is: {cause}; {earlier}, and {directory} "
            "holds no good checkpoint of an earlier epoch. Place save_checkpoints(..., "
            "max_cost=None) with this directory in the chain; before its first checkpoint, try a "
            "smaller learning rate"
        )
        return before, state.replace(stop=True)
    last = count >= limit
    if scale is not None:
        factor = scale ** (count + (not last) - scaled)
        opt_state = set_hyperparam(good["opt_state"], "learning_rate", lambda rate: rate * factor)
        good = {**good, "opt_state": opt_state}
    target = f"to the state of epoch {int(good['epoch'])}"
    if rates := get_hyperparam(good["opt_state"], "learning_rate"):
        shown = (f"{rate:.4g}" for each in rates.values() for rate in np.ravel(each))
        target += f", learning rate {', '.join(shown)}"
    if last:
        log.error(
            f"stopping at epoch {epoch}, back {target}: {cause}; {earlier}. Try a smaller learning "
            "rate, a longer warm-up or optax.clip_by_global_norm, or look at these epochs' data"
        )
        return before, restore_snapshot(good, state).replace(stop=True)
    log.warning(f"rolled back at epoch {epoch} ({count + 1} of {limit}) {target}: {cause}")
    epochs = np.append(before["epochs"][1:], np.int32(epoch))
    kept = {"good": good} if directory is None else {}
    return {**before, **kept, "epochs": epochs, "count": count + 1}, restore_snapshot(good, state)


def _describe_faults(faults: list[str], metrics: Mapping[str, float], state: TrainState) -> str:
    """Name the first three faults, and the first step that was not finite, if a trace has one."""
    more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
    first = find_first_nonfinite(metrics, read_step_count(state))
    where = f" (first not finite: {first[1]} at step {first[0]})" if first else ""
    return ", ".join(faults[:3]) + more + where
