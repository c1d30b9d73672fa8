"""Hooks that set the optimizer's numbers between epochs: on a plateau, or by a schedule."""

from __future__ import annotations

import dataclasses
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
from trainer.supervised.hyperparams import (
    check_hyperparam,
    check_one_group,
    fill_leaf,
    hyperparam,
    map_hyperparam,
    set_hyperparam,
)

log = logging.getLogger("entracte")

Schedule = Callable[[int], Any]
"""`(completed epochs) -> value`; every schedule of optax is one."""

Setting = float | Schedule


class Plateau(NamedTuple):
    """What `reduce_on_plateau` remembers."""

    best: float
    """The best value so far; infinite at first."""
    since: int
    """Evaluations since it was reached, or since the last reduction."""
    resting: int
    """Evaluations that are still not counted."""


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

    It sets the rate that `optax.inject_hyperparams` keeps, of every optimizer in `opt_state` that
    has one. It counts evaluations, not epochs: where the metric is missing, nothing is counted. A
    value that is not a number is no improvement.

    Args:
        metric: to watch, such as `val/loss`.
        factor: of the learning rate at each reduction, in (0, 1).
        patience: evaluations in a row without improvement after which to reduce.
        mode: `min` if smaller is better, `max` if larger is; None goes by the metric's name.
        min_delta: what counts as an improvement is more than this.
        cooldown: evaluations after a reduction in which the lack of improvement is not counted.
        min_rate: the rate is not reduced below it.

    Raises:
        ValueError: a setting is out of range, or the name does not tell the mode; before training,
            the optimizer has no learning rate that can be set.

    >>> import jax, jax.numpy as jnp, optax
    >>> optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.5)
    >>> params = {"w": jnp.ones(2)}
    >>> state = TrainState.create(
    ...     params=params, opt_state=optimizer.init(params), rng=jax.random.key(0)
    ... )
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

    def lower(rate: Any) -> Any:
        return np.minimum(rate, np.maximum(rate * factor, min_rate))

    def update(
        memory: Plateau, state: TrainState, metrics: Mapping[str, float]
    ) -> tuple[Plateau, TrainState]:
        value, resting = float(metrics[metric]), max(memory.resting - 1, 0)
        if improvement(memory.best, value, mode) > min_delta:
            return Plateau(value, 0, resting), state
        since = 0 if memory.resting else memory.since + 1
        if since < patience:
            return Plateau(memory.best, since, resting), state
        opt_state = set_hyperparam(state.opt_state, "learning_rate", lower)
        memory = Plateau(memory.best, 0, cooldown)
        if opt_state is state.opt_state:
            return memory, state
        rates = ", ".join(
            f"{np.max(r):.4g}" for r in hyperparam(opt_state, "learning_rate").values()
        )
        log.info(
            "learning rate reduced to %s: %s has not been better than %.6g for %d evaluations",
            rates,
            metric,
            memory.best,
            since,
        )
        return memory, state.replace(opt_state=opt_state)

    return dataclasses.replace(stateful(name, init, update), reads=(metric,))


def set_hyperparams(**schedules: Setting | Mapping[str, Setting]) -> Chain:
    """Set numbers that `optax.inject_hyperparams` keeps, by how many epochs are completed.

    At `start` for the first epoch, and after every epoch for the next: by the state alone, so that
    a resumed run has the same. What another hook changed is overwritten. Where several groups of
    the optimizer keep a name, say which is meant: `set_hyperparams(trunk={"learning_rate": 1e-4})`,
    or `set_hyperparams(**{"0": {"momentum": 0.9}})` where a group's name is no word. A group is
    named by its label in `optax.multi_transform` or `optax.named_chain`, or by its place in
    `optax.chain`; the step reports `learning_rate/<group>`.

    Args:
        schedules: name (`learning_rate`, `weight_decay`, `momentum`) to a value, or to a function
            of the number of completed epochs, such as a schedule of optax: it is given 0 for the
            first epoch. Or the name of a group to such names and values.

    Raises:
        TypeError: a value is no number, such as a text.
        ValueError: none is named; before training, the optimizer keeps no such number or has no
            such group, several groups keep it, or a schedule of its own sets it. Those that there
            are are listed.

    >>> import jax, jax.numpy as jnp, optax
    >>> optimizer = optax.inject_hyperparams(optax.adamw)(learning_rate=1.0, weight_decay=0.1)
    >>> params = {"w": jnp.ones(2)}
    >>> state = TrainState.create(
    ...     params=params, opt_state=optimizer.init(params), rng=jax.random.key(0)
    ... )
    >>> hook = set_hyperparams(learning_rate=lambda epoch: 0.5**epoch, weight_decay=0.0)
    >>> numbers = hook(state.replace(epoch=jnp.int32(2)), {}).opt_state.hyperparams
    >>> float(numbers["learning_rate"]), float(numbers["weight_decay"])
    (0.25, 0.0)
    """
    plan = _plan(schedules)
    if not plan:
        raise ValueError(
            "set_hyperparams needs what to set, such as learning_rate=optax.cosine_decay_schedule("
            "1e-3, epochs); got nothing"
        )
    for (_, name), value in plan.items():
        if not callable(value) and np.asarray(value).dtype.kind not in "fiu":
            raise TypeError(
                f"set_hyperparams sets numbers: {name} must be one, or a function of the epoch; "
                f"got {describe_value(value)}"
            )
    names = (name if group is None else f"{group}/{name}" for group, name in plan)
    title = f"set_hyperparams/{','.join(names)}"

    def run(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        epoch, opt_state = int(np.asarray(state.epoch)), state.opt_state
        for (group, name), schedule in plan.items():
            value = schedule(epoch) if callable(schedule) else schedule
            change = functools.partial(fill_leaf, value=value)
            opt_state = map_hyperparam(opt_state, name, change, group=group)
        return state if opt_state is state.opt_state else state.replace(opt_state=opt_state)

    def begin(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        for group, name in plan:
            check_hyperparam(f"hook {title!r}", state.opt_state, name, group=group)
            if group is None:
                check_one_group(f"hook {title!r}", state.opt_state, name)
        return run(state, metrics)

    return chain(Hook(begin, f"{title}/start", event="start"), Hook(run, title, event="epoch"))


def _plan(
    given: Mapping[str, Setting | Mapping[str, Setting]],
) -> dict[tuple[str | None, str], Setting]:
    """Lay out what is to be set: (group or None, name) to value."""
    plan: dict[tuple[str | None, str], Setting] = {}
    for name, setting in given.items():
        if isinstance(setting, Mapping):
            plan |= {(name, inner): value for inner, value in setting.items()}
        else:
            plan[None, name] = setting
    return plan
