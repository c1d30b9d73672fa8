"""Cost of an epoch: hand-counted products, loops as often as they run, bytes moved."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import trainer
from trainer import data, losses
from trainer.phases.costs.cost import Cost, count_flops, get_peak_flops

LAYERS, BATCH, WIDTH = 6, 16, 32
WEIGHTS, INPUTS = jnp.ones((LAYERS, WIDTH, WIDTH)), jnp.ones((BATCH, WIDTH))
ONE = 2 * BATCH * WIDTH * WIDTH
"""Operations of one layer."""


def scanned(weights, x):
    return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]


def unrolled(weights, x):
    for w in weights:
        x = jnp.tanh(x @ w)
    return x


def counted(function, *arguments):
    return count_flops(jax.make_jaxpr(function)(*arguments))


def test_training_and_evaluation_are_counted_by_step_and_epoch(task, start, train, val):
    """Softmax regression: one product forward, one for the gradient of the weights."""
    costs = trainer.cost([train, val], start)
    forward = 2 * 32 * 64 * 10
    assert list(costs) == ["train", "val"]
    assert (costs["train"].flops_per_step, costs["train"].steps) == (2 * forward, 6)
    assert costs["train"].flops == 6 * 2 * forward
    assert (costs["val"].flops_per_step, costs["val"].steps) == (forward, 2)
    parameters = 4 * 650
    assert costs["train"].bytes_per_step > 3 * parameters  # Adam's moments and the weights
    assert costs["train"].bytes == 6 * costs["train"].bytes_per_step


@pytest.mark.parametrize("function", [scanned, unrolled, jax.jit(scanned), jax.checkpoint(scanned)])
def test_layers_in_a_loop_cost_the_same_as_unrolled(function):
    assert counted(function, WEIGHTS, INPUTS) == LAYERS * ONE


@pytest.mark.parametrize("function", [scanned, unrolled])
def test_the_backward_pass_takes_two_products_for_each_forward(function):
    """Of the first layer too, since its inputs are differentiated here."""
    loss = lambda weights, x: function(weights, x).sum()  # noqa: E731
    assert counted(jax.grad(loss, argnums=(0, 1)), WEIGHTS, INPUTS) == 3 * LAYERS * ONE


def test_recomputation_counts_again():
    loss = lambda weights, x: jax.checkpoint(scanned)(weights, x).sum()  # noqa: E731
    assert counted(jax.grad(loss, argnums=(0, 1)), WEIGHTS, INPUTS) == 4 * LAYERS * ONE


def test_nested_loops_multiply_and_the_costliest_branch_counts():
    def twice(weights, x):
        return lax.fori_loop(0, 2, lambda _, x: scanned(weights, x), x)

    def either(weights, x):
        return lax.cond(x.sum() > 0, twice, scanned, weights, x)

    assert counted(twice, WEIGHTS, INPUTS) == 2 * LAYERS * ONE
    assert counted(either, WEIGHTS, INPUTS) == 2 * LAYERS * ONE


@pytest.mark.parametrize(
    ("subscripts", "shapes", "multiplications"),
    [
        ("ij,jk->ik", [(3, 4), (4, 5)], 60),
        ("bij,bjk->bik", [(2, 3, 4), (2, 4, 5)], 120),
        ("bhqd,bhkd->bhqk", [(2, 3, 4, 5), (2, 3, 6, 5)], 720),
        ("i,i->", [(7,), (7,)], 7),
    ],
)
def test_a_product_takes_two_operations_for_each_multiplication(
    subscripts, shapes, multiplications
):
    product = lambda a, b: jnp.einsum(subscripts, a, b)  # noqa: E731
    assert counted(product, *map(jnp.ones, shapes)) == 2 * multiplications


@pytest.mark.parametrize(
    ("arguments", "multiplications"),
    [
        ({}, 2 * 8 * 8 * 6 * 9 * 4),
        ({"window_strides": (2, 2)}, 2 * 4 * 4 * 6 * 9 * 4),
        ({"feature_group_count": 2, "channels": 2}, 2 * 8 * 8 * 6 * 9 * 2),
        ({"lhs_dilation": (2, 2), "padding": ((2, 1), (2, 1))}, 2 * 8 * 8 * 6 * 9 * 4),
    ],
)
def test_a_convolution_multiplies_its_window_for_each_output(arguments, multiplications):
    arguments = {"window_strides": (1, 1), "padding": "SAME"} | arguments
    kernel = jnp.ones((3, 3, arguments.pop("channels", 4), 6))
    numbers = ("NHWC", "HWIO", "NHWC")
    convolve = lambda x, kernel: lax.conv_general_dilated(  # noqa: E731
        x, kernel, dimension_numbers=numbers, **arguments
    )
    assert counted(convolve, jnp.ones((2, 8, 8, 4)), kernel) == 2 * multiplications


def _phase(function):
    """A hand-written phase that calls the function."""

    def run(state, data):
        return state, None, {"sum": function(state.params, data).sum()}

    return trainer.Phase("play", run, data.Arrays({"x": INPUTS}, BATCH))


def test_bytes_of_a_loop_are_those_of_each_round():
    state = trainer.TrainState.create(params=WEIGHTS, rng=jax.random.key(0))

    def found(function):
        return trainer.cost(_phase(lambda w, data: function(w, data["x"])), state)["play"]

    loop, flat = found(scanned), found(unrolled)
    assert loop.flops == flat.flops == LAYERS * ONE
    moved = WEIGHTS.nbytes + 2 * LAYERS * INPUTS.nbytes  # at least: weights once, values in and out
    assert moved <= flat.bytes <= 4 * moved
    assert moved <= loop.bytes <= 4 * moved


def test_the_step_of_a_stream_of_unknown_length_has_a_cost(linear):
    batches = [{"inputs": np.ones((4, 8), np.float32), "labels": np.zeros(4, np.int32)}] * 3
    task = trainer.supervised(linear, losses.classification, optax.sgd(0.1))
    state = task.init(jax.random.key(0), batches[0])
    known = data.Stream(batches, superbatch=2, steps_per_epoch=5)
    costs = [
        trainer.cost(trainer.training(task.step, source), state)["train"]
        for source in (data.Stream(batches, superbatch=2), known)
    ]
    assert [cost.steps for cost in costs] == [None, 5]
    assert [cost.flops for cost in costs] == [None, 5 * 2 * 2 * 4 * 8 * 10]
    assert costs[0].bytes is None
    assert costs[1].bytes == 5 * costs[1].bytes_per_step > 0


def test_a_phase_without_data_receives_the_output_of_the_previous_one():
    rollout = trainer.Phase("rollout", lambda state, data: (state, INPUTS, {}))
    update = trainer.Phase(
        "update", lambda state, data: (state, None, {"sum": scanned(state.params, data).sum()})
    )
    state = trainer.TrainState.create(params=WEIGHTS, rng=jax.random.key(0))
    costs = trainer.cost([rollout, update], state)
    assert (costs["rollout"].flops, costs["update"].flops) == (0, LAYERS * ONE)


def test_costing_runs_nothing_and_leaves_the_state_alone(start, train):
    before = trainer.fingerprint(start)
    trainer.cost(train, start)
    assert trainer.fingerprint(start) == before


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", None),
        ("Tesla V100-SXM2-16GB", 125e12),
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("cpu", None),
    ],
)
def test_the_peak_of_these_devices_is_known(kind, peak):
    assert get_peak_flops(kind) == peak


def test_utilisation_is_a_share_of_the_peak_where_that_is_known(train, start):
    assert Cost(10**12, None, None, peak=4e12).utilisation(steps_per_second=1) == 0.25
    assert trainer.cost(train, start)["train"].utilisation(steps_per_second=1) is None


def test_gradients_are_temporary_bytes():
    """The state is updated in place, so that they cannot lie where the next state comes."""

    def step(state, batch):
        grads = jax.grad(lambda w: ((batch["inputs"] @ w) ** 2).sum())(state.params)
        scale = 1 / jnp.maximum(1.0, optax.tree.norm(grads))  # all of them come first
        return state.replace(params=state.params - scale * grads), {}

    source = data.Arrays({"inputs": np.ones((8, 256), np.float32)}, 8)
    state = trainer.TrainState.create(params=jnp.ones((256, 256)), rng=jax.random.key(0))
    found = trainer.cost(trainer.training(step, source), state)["train"]
    assert found.temporary_bytes >= 4 * 256 * 256
