"""Build the optax schedule and optimizer of a configuration."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
import optax.contrib

from trainer.configuration.dataclasses import Optimizer, TrainingConfig
from trainer.supervised.optimizers import decay_mask

log = logging.getLogger("entracte")


def schedule(config: TrainingConfig, total_steps: int) -> float | optax.Schedule:
    """Build the learning rate schedule, or return the rate if it is constant.

    A schedule that ends before the run logs a warning: the rest trains at its last rate.

    Args:
        config: with the schedule and the learning rate.
        total_steps: optimizer updates of the whole run.

    Raises:
        ValueError: the run has no step, or the warmup is longer than the schedule.

    >>> from trainer.configuration.dataclasses import Schedule
    >>> rate = schedule(TrainingConfig(schedule=Schedule("cosine", warmup_steps=10)), 110)
    >>> [round(float(rate(step)), 6) for step in (0, 5, 10, 60, 110)]
    [0.0, 0.0005, 0.001, 0.0005, 0.0]
    """
    plan, peak = config.schedule, config.optimizer.learning_rate
    if plan.name == "constant" and not (plan.warmup_steps or plan.warmup_share):
        return peak
    if total_steps < 1:
        raise ValueError(f"a schedule needs at least 1 step of training; got {total_steps}")
    steps = total_steps if plan.steps is None else plan.steps
    warmup = plan.warmup_steps or round(plan.warmup_share * steps)
    if warmup >= steps:
        raise ValueError(
            f"the warmup takes {warmup} steps and the schedule has {steps}; make it shorter"
        )
    if plan.name == "constant":
        return optax.warmup_constant_schedule(0.0, peak, warmup) if warmup else peak
    if steps < total_steps:
        log.warning(
            "the schedule is over after %d steps and the run has %d: the others train at its last "
            "rate, %g",
            *(steps, total_steps, peak * plan.decay_to),
        )
    if plan.name == "cosine":
        decay = optax.cosine_decay_schedule(peak, steps - warmup, plan.decay_to)
    else:
        decay = optax.linear_schedule(peak, peak * plan.decay_to, steps - warmup)
    if not warmup:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), decay], [warmup])


def optimizer(config: TrainingConfig, total_steps: int) -> optax.GradientTransformation:
    """Build the optimizer with its schedule.

    The learning rate is kept in the optimizer's state, where `trainer.supervised` reports it and
    hooks may set it if it is constant. Weight decay is for parameters with two or more axes.
    `clip_norm`, `accumulate` and `precision` are for `trainer.supervised`.

    Args:
        config: with the optimizer and the schedule.
        total_steps: optimizer updates of the whole run.

    Raises:
        ValueError: the schedule does not fit the run.

    >>> state = optimizer(TrainingConfig(), total_steps=100).init({"w": jnp.ones(2)})
    >>> float(state.hyperparams["learning_rate"])
    0.0010000000474974513
    """
    settings = config.optimizer  # alone: a resume compares the settings in the closure
    make = _MAKERS[settings.name]

    def with_rate(learning_rate: Any) -> optax.GradientTransformation:
        return make(settings, learning_rate)

    injected = optax.inject_hyperparams(with_rate, hyperparam_dtype=jnp.float32)
    return injected(learning_rate=schedule(config, total_steps))


def _adamw(settings: Optimizer, rate: Any) -> optax.GradientTransformation:
    decay = 1e-4 if settings.weight_decay is None else settings.weight_decay
    return optax.adamw(rate, **_betas(settings), weight_decay=decay, mask=decay_mask)


def _adam(settings: Optimizer, rate: Any) -> optax.GradientTransformation:
    return optax.adam(rate, **_betas(settings))


def _lion(settings: Optimizer, rate: Any) -> optax.GradientTransformation:
    decay = 1e-3 if settings.weight_decay is None else settings.weight_decay
    return optax.lion(rate, **_betas(settings), weight_decay=decay, mask=decay_mask)


def _sgd(settings: Optimizer, rate: Any) -> optax.GradientTransformation:
    descent = optax.sgd(rate, momentum=settings.momentum)
    if not settings.weight_decay:
        return descent
    return optax.chain(optax.add_decayed_weights(settings.weight_decay, decay_mask), descent)


def _muon(settings: Optimizer, rate: Any) -> optax.GradientTransformation:
    muon = optax.contrib.muon(
        rate,
        beta=0.95 if settings.momentum is None else settings.momentum,
        **{f"adam_{name}": beta for name, beta in _betas(settings).items()},
    )
    if not settings.weight_decay:
        return muon
    # Its own decay has no mask for the parameters it leaves to adam: biases, convolution kernels.
    return optax.chain(muon, optax.add_decayed_weights(-rate * settings.weight_decay, decay_mask))


def _betas(settings: Optimizer) -> dict[str, float]:
    return {} if settings.betas is None else dict(zip(("b1", "b2"), settings.betas, strict=True))


_MAKERS: dict[str, Callable[[Optimizer, Any], optax.GradientTransformation]] = {
    "adamw": _adamw,
    "adam": _adam,
    "sgd": _sgd,
    "lion": _lion,
    "muon": _muon,
}
