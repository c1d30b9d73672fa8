"""Hooks that set the optimizer's hyperparameters between epochs: on a plateau, or by a schedule."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from hooks.base import stateful
from hooks.combining import Chain, chain
from trainer import Hook, TrainState
from trainer.checks.arguments import describe_value
from trainer.checks.modes import improvement, resolve_mode, worst
from trainer.state import read_epoch
from trainer.supervised.hyperparams import (
    check_hyperparam,
    check_one_group,
    fill_leaf,
    get_hyperparam,
    map_hyperparam,
    set_hyperparam,
)

log = logging.getLogger("entracte")

Schedule = Callable[[int], Any]
"""`(completed epochs) -> value`; every schedule of optax is one."""

Setting = float | Schedule


class Plateau(NamedTuple):
    """The hook state of `reduce_on_plateau`."""

    best: float
    """The best value so far; infinite at first."""
    since: int
    """Evaluations since the best value, or since the last reduction."""
    resting: int
    """Evaluations of the cooldown that are left; they do not count."""


def reduce_on_plateau(
    metric: str,
    *,
    factor: float = 0.1,
    patience: int = 10,
    mode: str | None = None,
    min_delta: float = 0.0,
    cooldown: int = 0,
    min_rate: float = 0.0,
) -> Hook:
    """Multiply the learning rate when a metric has not improved for `patience` evaluations.

    It sets the rate that `optax.inject_hyperparams` keeps, in every optimizer in `opt_state` that
    has one. An epoch without the metric does not count. NaN is no improvement.

    Args:
        metric: to watch, such as `val/loss`.
        factor: by which each reduction multiplies the learning rate, in (0, 1).
        patience: evaluations in a row without improvement after which to reduce.
        mode: `min` if smaller is better, `max` if larger is; None goes by the metric's name.
        min_delta: an improvement is more than this.
        cooldown: evaluations after a reduction in which a lack of improvement does not count.
        min_rate: smallest learning rate to reduce to.

    Raises:
        ValueError: a setting is out of range, or the mode is missing although the name does not
            tell it; before training, the optimizer has no learning rate that can be set.

    >>> import jax, jax.numpy as jnp, optax
    >>> optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.5)
    >>> opt_state = optimizer.init({})
    >>> state = TrainState.create(params={}, opt_state=opt_state, rng=jax.random.key(0))
    >>> hook = reduce_on_plateau("val/loss", factor=0.5, patience=2)
    >>> for loss in (0.5, 0.6, 0.7):
    ...     state = hook(state, {"val/loss": loss})
    >>> float(state.opt_state.hyperparams["learning_rate"])
    0.25
    """
    if not 0 < factor < 1:
        raise ValueError(f"factor must be in (0, 1); got {factor}")
    if patience < 1:
        raise ValueError(f"patience must be at least 1 evaluation; got {patience}")
    if min(min_delta, cooldown, min_rate) < 0:
        raise ValueError(
            "min_delta, cooldown and min_rate must not be negative; got "
            f"{min_delta}, {cooldown} and {min_rate}"
        )
    name = f"reduce_on_plateau/{metric}"
    mode = resolve_mode("reduce_on_plateau", metric, mode)

    def init(state: TrainState) -> Plateau:
        check_hyperparam(f"hook {name!r}", state.opt_state, "learning_rate")
        return Plateau(best=worst(mode), since=0, resting=0)

    def reduce(rate: Any) -> Any:
        return np.minimum(rate, np.maximum(rate * factor, min_rate))

    def update(
        before: Plateau, state: TrainState, metrics: Mapping[str, float]
    ) -> tuple[Plateau, TrainState]:
        value, resting = float(metrics[metric]), max(before.resting - 1, 0)
        if improvement(before.best, value, mode) > min_delta:
            return Plateau(value, 0, resting), state
        since = 0 if before.resting else before.since + 1
        if since < patience:
            return Plateau(before.best, since, resting), state
        after = Plateau(before.best, 0, cooldown)
        opt_state = set_hyperparam(state.opt_state, "learning_rate", reduce)
        if opt_state is state.opt_state:
            return after, state
        rates = get_hyperparam(opt_state, "learning_rate").values()
        log.info(
            "learning rate reduced to %s: %s has not been better than %.6g for %d evaluations",
            ", ".join(f"{np.max(rate):.4g}" for rate in rates),
            metric,
            after.best,
            since,
        )
        return after, state.replace(opt_state=opt_state)

    return stateful(name, init, update, reads=(metric,))


def set_hyperparams(**schedules: Setting | Mapping[str, Setting]) -> Chain:
    """Set hyperparameters that `optax.inject_hyperparams` keeps, by the number of completed epochs.

    They are set at `start` for the first epoch, and after every epoch for the next; values that
    another hook set are overwritten. If several groups of the optimizer keep a hyperparameter, name
    the group: `set_hyperparams(trunk={"learning_rate": 1e-4})`, or `**{"0": {"momentum": 0.9}}` if
    its name is not an identifier. A group's name is its label in `optax.multi_transform` or
    `optax.named_chain`, or its position in `optax.chain`; the step reports `learning_rate/<group>`.

    Args:
        schedules: name (`learning_rate`, `weight_decay`, `momentum`) to a value, or to a function
            of the number of completed epochs (0 for the first), such as an optax schedule. Or the
            name of a group to such names and values.

    Raises:
        TypeError: a value is not a number.
        ValueError: nothing is named; before training, the optimizer has no such hyperparameter or
            group, several groups keep it, or a schedule of its own sets it: they are listed.

    >>> import jax, jax.numpy as jnp, optax
    >>> optimizer = optax.inject_hyperparams(optax.adamw)(learning_rate=1.0, weight_decay=0.1)
    >>> opt_state = optimizer.init({})
    >>> state = TrainState.create(params={}, opt_state=opt_state, rng=jax.random.key(0))
    >>> hook = set_hyperparams(learning_rate=lambda epoch: 0.5**epoch, weight_decay=0.0)
    >>> numbers = hook(state.replace(epoch=jnp.int32(2)), {}).opt_state.hyperparams
    >>> float(numbers["learning_rate"]), float(numbers["weight_decay"])
    (0.25, 0.0)
    """
    settings: dict[tuple[str | None, str], Setting] = {}  # (group or None, name) to value
    for name, setting in schedules.items():
        if isinstance(setting, Mapping):
            settings |= {(name, inner): value for inner, value in setting.items()}
        else:
            settings[None, name] = setting
    if not settings:
        raise ValueError(
            "set_hyperparams needs what to set, such as learning_rate=optax.cosine_decay_schedule("
            "1e-3, epochs); got nothing"
        )
    for (_, name), value in settings.items():
        if not callable(value) and np.asarray(value).dtype.kind not in "fiu":
            raise TypeError(
                f"set_hyperparams sets numbers: {name} must be one, or a function of the epoch; "
                f"got {describe_value(value)}"
            )
    names = (name if group is None else f"{group}/{name}" for group, name in settings)
    title = f"set_hyperparams/{','.join(names)}"

    def run(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        epoch, opt_state = read_epoch(state), state.opt_state
        for (group, name), schedule in settings.items():
            value = schedule(epoch) if callable(schedule) else schedule
            change = functools.partial(fill_leaf, value=value)
            opt_state = map_hyperparam(opt_state, name, change, group=group)
        return state if opt_state is state.opt_state else state.replace(opt_state=opt_state)

    def start(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        for group, name in settings:
            check_hyperparam(f"hook {title!r}", state.opt_state, name, group=group)
            if group is None:
                check_one_group(f"hook {title!r}", state.opt_state, name)
        return run(state, metrics)

    return chain(Hook(start, f"{title}/start", event="start"), Hook(run, title, event="epoch"))
