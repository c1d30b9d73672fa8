"""Supervised learning: pure functions made of a network, a loss and an optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from trainer.checks.arguments import require_function, require_integer, require_number
from trainer.checks.language_models import check_positions
from trainer.losses.loss import Loss, LossFunction, as_loss, evaluate_loss, require_entry
from trainer.losses.weighing import WEIGHT_KEYS, check_weights_read
from trainer.phases import mixing_trial
from trainer.phases.batch_functions import Measure, Step
from trainer.phases.compilation import pause_gc
from trainer.phases.jaxprs import of_rows
from trainer.placement.hoisting import jit_hoisted
from trainer.placement.layer_gathering import call_gathered
from trainer.state import PyTree, TrainState, check_key
from trainer.supervised import batch_means, gradients, step_averages
from trainer.supervised import precision as precisions
from trainer.supervised.network_checks import check_example, check_network, check_pair
from trainer.supervised.optimizer_updates import check_optimizer, init_optimizer
from trainer.supervised.step_averages import AVERAGE, require_average

Batch = Mapping[str, Any]

Augment = Callable[[jax.Array, dict[str, Any]], dict[str, Any]]
"""`(key, batch) -> batch`, jittable; only labels may change their structure."""


class Task(NamedTuple):
    """The functions of supervised training, made by `trainer.supervised`."""

    init: Callable[[jax.Array, Batch], TrainState]
    """`(key, example batch) -> state` at step 0."""
    step: Step
    """`(state, batch) -> (state, metrics)`: one update; jittable."""
    measure: Measure
    """`(state, batch) -> {name: values}` without training; jittable."""
    gradients: Callable[[TrainState, Batch], tuple[PyTree, dict[str, jax.Array]]]
    """`(state, batch) -> (gradients, metrics)` as the step computes them, without augmentation and
    clipping; jittable."""
    updates: Callable[[TrainState, Batch], tuple[PyTree, PyTree]]
    """`(state, batch) -> (gradients, updates)`: the same gradients, and the optimizer's updates,
    which are added to the parameters; jittable."""
    optimizer: optax.GradientTransformation
    outputs: Callable[[TrainState, Batch], Any]
    """`(state, batch) -> outputs` of the network in evaluation mode, for `trainer.predict`."""
    statistics: Callable[[TrainState, Batch], PyTree]
    """`(state, batch) -> model_state` after a call of the network in training mode, for
    `trainer.recalibration`."""


def supervised(
    network: Any,
    loss: LossFunction,
    optimizer: optax.GradientTransformation,
    *,
    augment: Augment | None = None,
    accumulate: int = 1,
    clip_norm: float | None = None,
    precision: str = "float32",
    average: float | None = None,
) -> Task:
    """Build the functions of supervised training.

    The step reports the loss's means, `grad_norm` (global L2 norm, before clipping), and
    `learning_rate` where the optimizer keeps one (`optax.inject_hyperparams`), or
    `learning_rate/<group>` where several groups do; with `clip_norm` also `clipped`, the share of
    steps whose gradients were clipped; in float16 also `loss_scale`, and `skipped`, the share of
    steps whose gradients overflowed.

    Args:
        network: a pair (init, apply) as `models.Network` describes.
        loss: `(outputs, batch) -> {name: values}` with a `loss` to minimise; a function or a
            `losses.Loss`.
        optimizer: of optax. If it accepts them, it receives the batch's mean loss as `value`, the
            gradients before clipping as `grad`, and as `value_fn` the mean loss of the same batch
            at other parameters, computed as the step computes it: `optax.lbfgs`,
            `optax.contrib.reduce_on_plateau`.
        augment: changes each batch before a step, with `state.key("augment")`; evaluation uses the
            batches unchanged.
        accumulate: number of micro-batches into which a batch is split, one after another, to save
            memory; the gradients are those of the whole batch, unless the network mixes examples,
            as batch normalisation does.
        clip_norm: norm to which larger gradients are scaled; the norm is over all parameters,
            frozen ones included.
        precision: what the network computes in; the parameters keep their dtype, and the loss is
            computed in float32. What of the model state a step never changes is cast as they are.
            `float16` scales the loss, by `state.carry["loss_scale"]`; where gradients overflow,
            only `step` and the scale change.
        average: decay, in [0, 1), of an exponential moving average of the parameters, bias
            corrected, which each step updates at `state.carry["average"]["params"]`, in float32 at
            least. Training does not use it. A step that changes nothing does not count. Evaluate it
            with `hooks.evaluate(phase, params="average")`.

    Raises:
        TypeError: `network` or `optimizer` is something else; from `init`, the key is no key, or
            the batch no batch.
        ValueError: a setting is out of range, or the optimizer needs its own kind of parameters;
            before training, the loss ignores `weights` or `mask` of the batch; from `init`, the
            device lacks the precision; when traced, `accumulate` does not divide the batch.

    >>> from types import SimpleNamespace
    >>> from trainer import losses
    >>> linear = SimpleNamespace(
    ...     init=lambda key, x: ({"w": jnp.zeros((x.shape[-1], 2))}, {}),
    ...     apply=lambda params, model_state, x, *, key, train: (x @ params["w"], model_state),
    ... )
    >>> task = supervised(linear, losses.classification, optax.sgd(0.1), clip_norm=1.0)
    >>> batch = {"inputs": jnp.ones((4, 3)), "labels": jnp.zeros(4, jnp.int32)}
    >>> state, metrics = task.step(task.init(jax.random.key(0), batch), batch)
    >>> int(state.step), sorted(metrics)
    (1, ['accuracy', 'clipped', 'grad_norm', 'loss'])
    """
    check_network(network, "supervised")
    check_optimizer(optimizer, "supervised")
    form = "(outputs, batch) -> {name: values}"
    called = "pass the function itself, without calling it" if isinstance(loss, Mapping) else ""
    require_function("supervised takes a loss, which", loss, form, called)
    loss = as_loss(loss)
    require_integer("accumulate", accumulate, 1)
    if augment is not None:
        require_function("supervised takes augment, which", augment, "(key, batch) -> batch")
    if clip_norm is not None and not require_number("clip_norm", clip_norm) > 0:
        raise ValueError(f"clip_norm must be above 0, or None; got {clip_norm}")
    if accumulate > 1 and loss.whole_batch:
        raise ValueError(
            f"accumulate={accumulate} would pass the loss {loss.name!r} a part of a batch at a "
            "time, and it declares that it needs the whole one: leave accumulate out, or take a "
            "loss that does not look at other examples"
        )
    precisions.require_known(precision)
    if average is not None and not 0 <= require_number("average", average) < 1:
        raise ValueError(f"average must be a decay in [0, 1), such as 0.999; got {average}")
    scaling = precision == "float16"

    def init_network(key: jax.Array, inputs: Any) -> tuple[jax.Array, Any]:
        root, network_key = jax.random.split(key)
        return root, network.init(network_key, inputs)

    @pause_gc()
    def init(key: jax.Array, example: Batch) -> TrainState:
        check_key(key)
        check_example(example)
        precisions.require_available(precision, jax.devices()[0])
        root, variables = jit_hoisted(init_network)(key, example["inputs"])
        params, model_state = check_pair(network, "init", variables)
        carry: dict[str, PyTree] = {}
        if scaling:
            carry["loss_scale"] = precisions.init_loss_scale()
        if average is not None:
            carry[AVERAGE] = step_averages.init_average(params)
        return TrainState.create(
            params=params,
            opt_state=init_optimizer(optimizer, params, "supervised"),
            model_state=model_state,
            rng=root,
            carry=carry,
        )

    def run(
        params: PyTree, model_state: PyTree, inputs: Any, key: jax.Array, *, train: bool
    ) -> tuple[Any, PyTree]:
        if precision != "float32":
            inputs = precisions.cast_floating(inputs, precision)

        def forward(params: PyTree, model_state: PyTree, train: bool) -> tuple[Any, PyTree]:
            returned = network.apply(params, model_state, inputs, key=key, train=train)
            return check_pair(network, "apply", returned)

        def apply(params: PyTree, model_state: PyTree) -> tuple[Any, PyTree]:
            if precision == "float32":
                return forward(params, model_state, train)
            return precisions.call_cast(forward, params, model_state, precision, train=train)

        outputs, after = call_gathered(apply, params, model_state)
        if precision == "float32":
            return outputs, after
        outputs = precisions.cast_floating(outputs, jnp.float32)
        return outputs, precisions.cast_like(after, model_state)

    def compute_gradients(state: TrainState, batch: Batch) -> gradients.Gradients:
        scale = state.carry["loss_scale"]["scale"] if scaling else None

        def objective(
            params: PyTree, model_state: PyTree, batch: Batch, key: jax.Array
        ) -> tuple[dict[str, batch_means.WeightedMean], PyTree]:
            inputs = require_entry("the network", batch, "inputs")
            outputs, model_state = run(params, model_state, inputs, key, train=True)
            return batch_means.compute_means(loss, state.step, outputs, batch), model_state

        arguments = objective, state.params, state.model_state, batch, state.key("network")
        if accumulate == 1:
            found = gradients.compute_gradients(*arguments, scale=scale)
        else:
            found = gradients.accumulate_gradients(*arguments, count=accumulate, scale=scale)
        if scale is None:
            return found
        grads = precisions.cast_like(optax.tree.scale(1 / scale, found.grads), found.grads)
        return found._replace(grads=grads, value_fn=_without_float16)

    def grads_and_metrics(state: TrainState, batch: Batch) -> tuple[PyTree, dict[str, jax.Array]]:
        found = compute_gradients(state, batch)
        return found.grads, batch_means.to_metrics(found.means)

    def updates(state: TrainState, batch: Batch) -> tuple[PyTree, PyTree]:
        found = compute_gradients(state, batch)
        return found.grads, gradients.compute_updates(state, found, found.grads, optimizer)[0]

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Any]]:
        if augment is not None:
            batch = augment(state.key("augment"), dict(batch))
        found = compute_gradients(state, batch)
        norm = gradients.global_norm if precision == "float32" else optax.tree.norm
        after, metrics = gradients.apply_gradients(
            state, found, optimizer, grad_norm=norm(found.grads), clip_norm=clip_norm
        )
        weighted = batch_means.has_weight(found.means)
        after, metrics = gradients.skip_empty_batch(weighted, state, after, metrics)
        metrics = batch_means.to_metrics(found.means) | metrics
        if scaling:
            after, metrics = precisions.skip_nonfinite(state, after, metrics, weighted)
        if average is not None:
            require_average(state, "the step of supervised(..., average=...)")
            counts = _has_updated(metrics, weighted)
            moved = step_averages.update_average(
                state.carry[AVERAGE], after.params, average, counts
            )
            after = after.replace(carry={**after.carry, AVERAGE: moved})
        return after, metrics

    def statistics(state: TrainState, batch: Batch) -> PyTree:
        if augment is not None:
            batch = augment(state.key("augment"), dict(batch))
        key = state.key("network")
        return run(state.params, state.model_state, batch["inputs"], key, train=True)[1]

    def infer(state: TrainState, inputs: Any) -> Any:
        return run(state.params, state.model_state, inputs, state.key("network"), train=False)[0]

    def outputs(state: TrainState, batch: Batch) -> Any:
        return infer(state, require_entry("the network", batch, "inputs"))

    def measure(state: TrainState, batch: Batch) -> dict[str, Any]:
        return evaluate_loss(loss, state.step, outputs(state, batch), batch)

    check = _make_check(network, infer, loss)
    micro = None
    if accumulate > 1:
        micro = mixing_trial.make_accumulation_trial(loss, infer, statistics, accumulate)
    alone = mixing_trial.make_measure_trial(loss, infer, measure)
    return Task(
        init,
        Step(step, check, loss.finalize, micro),
        Measure(measure, check, loss.finalize, alone, loss.whole_batch),
        *(grads_and_metrics, updates, optimizer, outputs, statistics),
    )


def _has_updated(metrics: Mapping[str, Any], weighted: jax.Array | None) -> jax.Array | None:
    """Return whether a step changed the parameters, () bool; None where every step does."""
    if "skipped" not in metrics:
        return weighted
    finite = metrics["skipped"] == 0
    return finite if weighted is None else finite & weighted


def _without_float16(params: PyTree) -> jax.Array:
    raise ValueError(
        "the optimizer searches along values of the loss (value_fn), as optax.lbfgs does, whose "
        "gradients float16 rounds to zero; use precision='float32' or 'bfloat16'"
    )


def _make_check(
    network: Any, outputs: Callable[..., Any], loss: Loss
) -> Callable[[TrainState, Batch], None]:
    """Build the check of host data, which knows the shapes of the network's outputs."""
    known: dict[str, Any] = {}

    def check(state: TrainState, batch: Batch) -> None:
        check_positions(network, batch.get("inputs"))
        if loss.check is None and not set(WEIGHT_KEYS).intersection(batch):
            return
        one = of_rows(dict(batch), 1)
        signature = str(one)
        if signature not in known:  # tracing the network for every superbatch takes time
            known[signature] = jax.eval_shape(outputs, state, one["inputs"])
            check_weights_read(loss, state.step, known[signature], one)
        if loss.check is not None:
            loss.check(known[signature], batch)

    return check
