"""Supervised learning: a network, a loss and an optimizer become three pure functions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from trainer.executors import Step
from trainer.losses import Loss
from trainer.repeating import Measure
from trainer.state import TrainState


class Task(NamedTuple):
    """What `trainer.supervised` gives."""

    init: Callable[[jax.Array, Mapping[str, Any]], TrainState]
    """`(key, example batch) -> state` at step 0."""
    step: Step
    """`(state, batch) -> (state, metrics)`: one update; jittable."""
    measure: Measure
    """`(state, batch) -> {name: values}` without training; jittable."""


def supervised(network: Any, loss: Loss, optimizer: optax.GradientTransformation) -> Task:
    """Make the functions of supervised training.

    The step reports the loss's means, `grad_norm` (global L2 norm), and `learning_rate` where the
    optimizer keeps one (`optax.inject_hyperparams`).

    Args:
        network: a pair (init, apply) as `models.Network` describes.
        loss: `(outputs, batch) -> {name: values}` with a `loss` to minimise.
        optimizer: of optax.

    >>> from types import SimpleNamespace
    >>> from trainer import losses
    >>> linear = SimpleNamespace(
    ...     init=lambda key, x: ({"w": jnp.zeros((x.shape[-1], 2))}, {}),
    ...     apply=lambda params, model_state, x, *, key, train: (x @ params["w"], model_state),
    ... )
    >>> task = supervised(linear, losses.classification, optax.sgd(0.1))
    >>> batch = {"inputs": jnp.ones((4, 3)), "labels": jnp.zeros(4, jnp.int32)}
    >>> state, metrics = task.step(task.init(jax.random.key(0), batch), batch)
    >>> int(state.step), sorted(metrics)
    (1, ['accuracy', 'grad_norm', 'loss'])
    """

    known: dict[str, Any] = {}

    def init(key: jax.Array, example: Mapping[str, Any]) -> TrainState:
        if "inputs" not in example:
            raise ValueError(f"a batch needs 'inputs' for the network; got {sorted(example)}")
        root, network_key = jax.random.split(key)
        params, model_state = jax.jit(network.init)(network_key, example["inputs"])
        opt_state = jax.jit(optimizer.init)(params)
        return TrainState.create(
            params=params, opt_state=opt_state, model_state=model_state, rng=root
        )

    def step(state: TrainState, batch: Mapping[str, Any]) -> tuple[TrainState, dict[str, Any]]:
        def objective(params: Any) -> tuple[jax.Array, Any]:
            outputs, model_state = network.apply(
                params, state.model_state, batch["inputs"], key=state.key("network"), train=True
            )
            means = {name: _mean(values) for name, values in loss(outputs, batch).items()}
            if "loss" not in means:
                raise ValueError(f"a loss must give 'loss' to minimise; it gave {sorted(means)}")
            return means["loss"], (means, model_state)

        grads, (metrics, model_state) = jax.grad(objective, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        metrics |= {"grad_norm": _norm(grads)}
        rates = optax.tree.get_all_with_path(opt_state, "learning_rate")
        rates = [rate for _, rate in rates if isinstance(rate, jax.Array)]  # not schedules' states
        if len(rates) == 1:
            metrics["learning_rate"] = rates[0]
        return state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
            model_state=model_state,
        ), metrics

    def outputs(state: TrainState, inputs: Any) -> Any:
        key = state.key("network")
        return network.apply(state.params, state.model_state, inputs, key=key, train=False)[0]

    def measure(state: TrainState, batch: Mapping[str, Any]) -> dict[str, Any]:
        return loss(outputs(state, batch["inputs"]), batch)

    def check(state: TrainState, batch: Mapping[str, Any]) -> None:
        examine = getattr(loss.func if isinstance(loss, functools.partial) else loss, "check", None)
        if examine:
            one = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), batch)
            signature = str(one["inputs"])
            if signature not in known:  # tracing the network for every superbatch would cost
                known[signature] = jax.eval_shape(outputs, state, one["inputs"])
            examine(known[signature], batch)

    step.check = measure.check = check  # type: ignore[attr-defined]
    return Task(init, step, measure)


SMALL = 2**15
"""Elements below which a leaf's norm costs more to start than to compute."""


def _norm(tree: Any) -> jax.Array:
    """Give the L2 norm over all leaves, the small ones joined.

    One by one they take 5% of an MLP's step on CPU; joining large ones would copy them.
    """
    leaves = jax.tree.leaves(tree)
    small = [leaf.ravel() for leaf in leaves if leaf.size < SMALL]
    large = [leaf for leaf in leaves if leaf.size >= SMALL]
    return optax.tree.norm([*large, jnp.concatenate(small)] if small else large)


def _mean(values: Any) -> jax.Array:
    if isinstance(values, tuple):
        values, weights = values
        return jnp.sum(values * weights) / jnp.sum(weights)
    return jnp.mean(values)
