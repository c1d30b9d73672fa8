"""Watching gradients: hand-computed norms, ratios and dead units; training does not change."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hooks
import trainer
from hooks.monitoring.watching_gradients import SHOWN, group_by_layer, sample
from hooks.testing import check_hook
from hooks.writers.values import Histogram


def half_square(outputs, batch):
    """A loss whose gradient by the outputs is the outputs."""
    return {"loss": jnp.sum(outputs**2, axis=-1) / 2}


class Product:
    """x @ first, relu, @ second, with fixed parameters."""

    first = jnp.array([[1.0, -1.0], [2.0, -3.0]])  # its second unit is dead on positive inputs
    second = jnp.array([[0.5], [4.0]])

    @staticmethod
    def init(key, x):
        return {"layers": [{"kernel": Product.first}, {"kernel": Product.second}]}, {}

    @staticmethod
    def apply(params, model_state, x, *, key, train):
        first, second = (layer["kernel"] for layer in params["layers"])
        return jnp.maximum(x @ first, 0) @ second, model_state


BATCH = {"inputs": jnp.array([[1.0, 1.0]])}
"""On it: hidden [3, 0], output 1.5, gradients 1.5 * [3, 0] and 1.5 * 0.5 * [[1, 0], [1, 0]]."""


@pytest.fixture(scope="module")
def product():
    task = trainer.supervised(Product, half_square, optax.sgd(0.1), clip_norm=0.5)
    return task, task.init(jax.random.key(0), BATCH)


def test_norms_ratios_and_dead_units_match_hand_computed_ones(product):
    task, state = product
    scores = hooks.watch_gradients(task, BATCH)(state, {"time": 1.0}).scores
    sizes = [np.sqrt(1 + 1 + 4 + 9), np.sqrt(0.25 + 16)]
    norms = [0.75 * np.sqrt(2), 4.5]
    assert scores == pytest.approx(
        {
            "gradients/norm/layers/0": norms[0],
            "gradients/norm/layers/1": norms[1],
            "gradients/param_norm/layers/0": sizes[0],
            "gradients/param_norm/layers/1": sizes[1],
            "gradients/update_ratio/layers/0": 0.1 * norms[0] / sizes[0],
            "gradients/update_ratio/layers/1": 0.1 * norms[1] / sizes[1],
            "gradients/dead/layers/0": 0.5,
            "gradients/dead/layers/1": 0.0,
        },
        rel=1e-6,
    )


def test_gradients_are_those_of_the_training_step(task, start, train, digits):
    """Gradients of the batch of the step; the update uses the optimizer's state, such as Adam's."""
    batch = digits[0].example
    scores = hooks.watch_gradients(task, batch, depth=1)(start, {}).scores
    after, metrics = jax.jit(task.step)(start, batch)
    total = np.hypot(scores["gradients/norm/w"], scores["gradients/norm/b"])
    assert total == pytest.approx(float(metrics["grad_norm"]), rel=1e-5)
    moved = jnp.linalg.norm(after.params["w"] - start.params["w"])
    ratio = moved / jnp.linalg.norm(start.params["w"])
    assert scores["gradients/update_ratio/w"] == pytest.approx(float(ratio), rel=1e-4)


def test_a_layer_without_updates_has_ratio_0(product):
    _, state = product
    frozen = trainer.supervised(Product, half_square, optax.set_to_zero())
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    zeroed = state.replace(opt_state=frozen.optimizer.init(zeros), params=zeros)
    scores = hooks.watch_gradients(frozen, BATCH)(zeroed, {}).scores
    assert scores["gradients/update_ratio/layers/0"] == 0.0
    assert scores["gradients/dead/layers/0"] == 1.0


def test_layers_are_prefixes_of_paths():
    tree = {"blocks": [{"mlp": {"in": 1, "out": 2}, "scale": 3}, {"mlp": {"in": 4}}], "head": 5}
    assert group_by_layer(tree, 1) == {"blocks": [1, 2, 3, 4], "head": [5]}
    assert group_by_layer(tree, 2) == {"blocks/0": [1, 2, 3], "blocks/1": [4], "head": [5]}
    assert group_by_layer(tree, 3) == {
        "blocks/0/mlp": [1, 2],
        "blocks/0": [3],
        "blocks/1/mlp": [4],
        "head": [5],
    }


@pytest.mark.parametrize("size", [1, SHOWN, SHOWN + 1, 5 * SHOWN])
def test_a_histogram_is_made_of_evenly_picked_numbers(size):
    picked = sample([jnp.arange(size), jnp.zeros(2)])
    assert min(size, SHOWN // 2) < picked.size + 1 <= SHOWN + 3
    assert len(set(np.diff(np.asarray(picked[: (size + 1) // 2]))[: size // 8].tolist())) <= 1


def test_histograms_are_written_at_their_period(product, phase, recorder):
    task, state = product
    hook = hooks.watch_gradients(task, BATCH, recorder, depth=1, histograms_every=2)
    for epoch in (1, 2, 3, 4):
        now = state.replace(epoch=jnp.int32(epoch), step=jnp.int32(10 * epoch))
        hook(now, {})
    assert [step for step, _ in recorder.written] == [20, 40]
    values = recorder.written[0][1]
    assert list(values) == [
        "epoch",
        "gradients/histogram/layers",
        "gradients/param_histogram/layers",
    ]
    assert isinstance(values["gradients/param_histogram/layers"], Histogram)
    expected = [*np.ravel(Product.first), *np.ravel(Product.second)]
    np.testing.assert_array_equal(values["gradients/param_histogram/layers"].values, expected)


def test_a_source_provides_its_first_batch(task, start, digits):
    of_source, of_batch = (
        hooks.watch_gradients(task, given)(start, {}).scores
        for given in (digits[0], digits[0].example)
    )
    assert of_source == of_batch


def test_its_scores_are_known_before_training_and_read_by_later_observers(
    task, start, train, digits, tmp_path
):
    watch = hooks.watch_gradients(task, digits[0])
    names = watch.parts[0].writes(start)
    seen = []

    @hooks.observe
    @hooks.reads(*names)
    def read(state, metrics):
        seen.append(metrics["gradients/norm/w"])
        return state

    plain, _ = trainer.fit(start, train, epochs=2)
    watched, history = trainer.fit(start, train, epochs=2, hooks=[watch, read])
    assert trainer.fingerprint(plain) == trainer.fingerprint(watched)
    assert len(seen) == 2
    assert set(names) <= set(history[-1])
    with pytest.raises(ValueError, match="which nothing writes before it"):
        trainer.fit(start, train, epochs=1, hooks=[read, watch])


def test_its_function_is_traced_once(product, phase, recorder):
    task, state = product
    traces = []

    def counting(state, batch):
        traces.append(1)
        return task.updates(state, batch)

    hook = hooks.watch_gradients(task._replace(updates=counting), BATCH, recorder)
    for epoch in (9, 10):
        hook(state.replace(epoch=jnp.int32(epoch)), {})
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"depth": 0}, "depth of at least 1"), ({"histograms_every": 0}, "n")],
)
def test_settings_out_of_range_are_refused(product, arguments, message, recorder):
    with pytest.raises(ValueError, match=message):
        hooks.watch_gradients(product[0], BATCH, recorder, **arguments)


def test_labels_that_do_not_fit_the_task_are_refused_before_training(task, start, train, digits):
    wrong = {**digits[0].example, "labels": jnp.full(32, 10)}
    with pytest.raises(ValueError, match="label"):
        trainer.fit(start, train, epochs=1, hooks=hooks.watch_gradients(task, wrong))


def test_it_holds_the_laws(product, recorder):
    task, state = product
    state = state.replace(epoch=jnp.int32(10))
    check_hook(hooks.watch_gradients(task, BATCH, recorder), state, {})
