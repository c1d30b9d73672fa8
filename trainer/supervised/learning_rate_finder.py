"""The learning-rate finder: the loss while the rate grows, and the rates that it suggests."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trainer.checks.paths import to_absolute_path
from trainer.data.source import Source
from trainer.host.extras import require_extra
from trainer.phases.batch_functions import Step, StepFunction, as_step
from trainer.phases.buffers.state_buffers import copy_state
from trainer.phases.factories import training
from trainer.phases.reductions import WEIGHT
from trainer.state import PyTree, TrainState
from trainer.supervised.hyperparams import check_hyperparam, map_hyperparam

SMOOTHING_DECAY = 0.9
"""Weight of the past in the running mean that detects divergence."""

DIVERGED = 4.0
"""Multiple of the best running mean above which the loss has diverged."""

WIDTH = 0.03
"""Standard deviation of the window that smooths the losses, as a share of the steps."""


@dataclasses.dataclass(frozen=True, eq=False)
class RangeTest:
    """The result of `find_learning_rate`."""

    rates: np.ndarray
    """float64 `[steps]`, the learning rate of each step."""
    losses: np.ndarray
    """float64 `[steps]`, the loss before each update."""
    before_divergence: np.ndarray
    """bool `[steps]`, true until the loss diverged."""
    smoothed: np.ndarray
    """float64 `[steps]`, the losses smoothed without a lag; nan after divergence."""
    steepest: float
    """The rate at which the loss falls fastest over the logarithm of the rate."""
    valley: float
    """The rate in the middle, by loss, of the longest fall of the loss."""

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Plot the loss over the rate, with both suggestions, into a PNG file.

        Raises:
            ImportError: matplotlib is not installed.
        """
        with require_extra("plots", "plot", "matplotlib"):
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        counted = self.before_divergence
        axes.plot(self.rates[counted], self.losses[counted], ".", color="0.7", label="loss")
        axes.plot(self.rates[counted], self.smoothed[counted], color="tab:blue", label="smoothed")
        for name, color in (("steepest", "tab:red"), ("valley", "tab:green")):
            rate = getattr(self, name)
            loss = self.smoothed[np.searchsorted(self.rates, rate)]
            axes.plot([rate], [loss], "o", color=color, label=f"{name}: {rate:.2g}")
        fallen = int(np.nanargmin(self.smoothed))
        bottom, top = self.losses[counted].min(), np.nanmax(self.smoothed[: fallen + 1])
        limits = bottom - 0.1 * (top - bottom), top + 0.5 * (top - bottom)  # cuts the divergence
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss", ylim=limits)
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(to_absolute_path(path, "plot"), format="png", dpi=120)


def find_learning_rate(
    step: Step | StepFunction,
    state: TrainState,
    source: Source,
    *,
    low: float = 1e-7,
    high: float = 10.0,
    steps: int = 100,
) -> RangeTest:
    """Train for a few steps with a growing learning rate, and suggest rates from the losses.

    It is no hook: call it before `fit`. The state is unchanged; the trained parameters are
    discarded. All steps run; those after the loss diverged (it is not finite, or its running mean
    is over 4 times the best) do not count. Both suggestions come from losses smoothed by a
    symmetric window, so without a lag. They depend on the batch size and are a starting point: look
    at the plot.

    Args:
        step: `(state, batch) -> (state, metrics)` with a `loss`, such as `task.step`.
        state: to start from; its optimizer keeps a learning rate that can be set,
            `optax.inject_hyperparams(optax.adam)(learning_rate=1e-3)`. Where several groups keep
            one, all are set.
        source: of batches, read as in training, from the state's epoch on, repeatedly if it has
            fewer batches than steps.
        low: rate of the first step.
        high: rate of the last step.
        steps: number of steps.

    Raises:
        ValueError: a setting is out of range; the optimizer has no learning rate that can be set;
            the step reports no `loss`; the loss never fell.

    Source: L. Smith, Cyclical Learning Rates for Training Neural Networks, 2017, section 3.3, for
    the test. The valley's fall is that of fastai, the longest decreasing subsequence; its middle is
    taken by loss and not by steps: by steps it differed up to tenfold between two seeds.

    >>> import optax
    >>> from trainer import data
    >>> optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=1.0)
    >>> def step(state, batch):
    ...     error = state.params - batch["inputs"]
    ...     grads = 2 * error.mean()
    ...     updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    ...     params = optax.apply_updates(state.params, updates)
    ...     after = state.replace(step=state.step + 1, params=params, opt_state=opt_state)
    ...     return after, {"loss": (error**2).mean()}
    >>> params = jnp.zeros(())
    >>> state = TrainState.create(
    ...     params=params, opt_state=optimizer.init(params), rng=jax.random.key(0)
    ... )
    >>> found = find_learning_rate(step, state, data.Arrays({"inputs": np.full(64, 3.0)}, 16))
    >>> 0.01 < found.steepest < 0.5
    True
    """
    if not 0 < low < high < np.inf:
        raise ValueError(f"low and high must be rates with 0 < low < high; got {low} and {high}")
    if steps < 10:
        raise ValueError(f"steps must be at least 10, to see a slope; got {steps}")
    check_hyperparam("find_learning_rate", state.opt_state, "learning_rate")
    rates = np.geomspace(low, high, steps)
    losses = _record_losses(step, state, source, rates)
    counted = _mask_before_divergence(losses)
    smoothed = _smooth(losses, counted)
    falling = _longest_fall(smoothed[counted])
    if len(falling) < 3:
        until = f", and diverged at {rates[counted.sum()]:.3g}" if not counted.all() else ""
        raise ValueError(
            f"the loss never fell while the learning rate grew from {low:.3g} to {high:.3g}: it "
            f"was {losses[0]:.6g} at first{until}; try a smaller low, more steps or a larger batch"
        )
    slopes = np.gradient(smoothed[counted], np.log(rates[counted]))
    steepest = falling[np.argmin(slopes[falling])]
    fall = smoothed[falling]
    valley = falling[np.argmin(np.abs(fall - (fall[0] + fall[-1]) / 2))]
    return RangeTest(rates, losses, counted, smoothed, float(rates[steepest]), float(rates[valley]))


def _record_losses(
    step: Step | StepFunction, state: TrainState, source: Source, rates: np.ndarray
) -> np.ndarray:
    """Train with these rates, one per step, and return the loss of each step: float64 `[steps]`."""
    first, table = int(state.step), np.asarray(rates, np.float32)

    def step_at_rate(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Any]]:
        rate = jnp.asarray(table)[jnp.clip(state.step - first, 0, len(table) - 1)]
        opt_state = map_hyperparam(
            state.opt_state, "learning_rate", lambda old: jnp.full(old.shape, rate, old.dtype)
        )
        after, metrics = step(state.replace(opt_state=opt_state), batch)
        if "loss" not in metrics:
            raise ValueError(f"the step must report a 'loss'; it reports {sorted(metrics)}")
        weight = metrics.get("loss" + WEIGHT, jnp.ones(()))
        return after, {"loss": metrics["loss"], "counts": (weight > 0).astype(jnp.float32)}

    step_record = Step(step_at_rate, as_step(step).check)
    phase = training(step_record, _truncate_epochs(source, len(rates)), name="range_test")
    state = phase.add_position(copy_state(state.replace(hook_state={}, scores={})))
    phase.verify(state)
    losses: list[float] = []
    while len(losses) < len(rates):
        state, _, measured = phase.execute(state, None, donate=True)
        _, traces, _ = measured.read()
        both = (traces[f"range_test/{name}"] for name in ("loss", "counts"))
        for loss, counts in zip(*both, strict=True):
            # A batch without weights has no loss; it did not diverge.
            losses.append(loss if counts or not losses else losses[-1])
        state = state.replace(epoch=state.epoch + 1)
    return np.array(losses[: len(rates)], np.float64)


def _truncate_epochs(source: Source, steps: int) -> Any:
    """Return a source of the first steps of each epoch, so that the rest is not read."""
    feed = source.training()

    def rows(piece: Any, key: jax.Array) -> Any:
        return jax.tree.map(lambda rows: rows[:steps], feed.rows(piece, key))

    def pieces(*arguments: Any) -> Iterator[tuple[Any, PyTree]]:
        key, left = jax.random.key(0), steps
        for piece, position in feed.pieces(*arguments):
            yield piece, position
            left -= jax.tree.leaves(jax.eval_shape(feed.rows, piece, key))[0].shape[0]
            if left <= 0:
                return

    truncated = feed._replace(rows=rows, pieces=pieces)
    return SimpleNamespace(example=source.example, training=lambda: truncated)


def _mask_before_divergence(losses: np.ndarray) -> np.ndarray:
    """Return for each step whether it precedes the divergence of the loss: bool `[steps]`."""
    finite = np.isfinite(losses)
    gaps = np.subtract.outer(np.arange(len(losses)), np.arange(len(losses)))
    weights = np.where(gaps >= 0, SMOOTHING_DECAY ** np.maximum(gaps, 0), 0.0)
    running = weights @ np.where(finite, losses, 0.0) / weights.sum(axis=1)
    best = np.minimum.accumulate(running)
    diverged = ~finite | (running - best > (DIVERGED - 1) * np.abs(best))
    return ~np.logical_or.accumulate(diverged)


def _smooth(losses: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Average each counted loss with its counted neighbours on both sides: float64 `[steps]`."""
    steps = np.flatnonzero(counted)
    width = max(WIDTH * len(losses), 1.0)
    weights = np.exp(-0.5 * (np.subtract.outer(steps, steps) / width) ** 2)
    smoothed = np.full(len(losses), np.nan)
    smoothed[counted] = weights @ losses[counted] / weights.sum(axis=1)
    return smoothed


def _longest_fall(values: np.ndarray) -> np.ndarray:
    """Return the indices of the longest decreasing subsequence: int64 `[indices]`."""
    lengths, before = np.ones(len(values), int), np.full(len(values), -1)
    for index in range(1, len(values)):
        higher = np.flatnonzero(values[:index] > values[index])
        if higher.size:
            longest = higher[np.argmax(lengths[higher])]
            lengths[index], before[index] = lengths[longest] + 1, longest
    indices = [int(np.argmax(lengths))] if len(values) else []
    while indices and before[indices[-1]] >= 0:
        indices.append(int(before[indices[-1]]))
    return np.array(indices[::-1], int)
