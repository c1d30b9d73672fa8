"""Training reduces the metrics of its steps; evaluation is exact over a whole split."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import trainer
from trainer import data

pytestmark = pytest.mark.usefixtures("compiled_quickly")


def _measure(state, batch):
    values = batch["inputs"][:, 0]
    return {
        "loss": values,
        "hits": (values > 0).astype(jnp.float32),
        "weighted": (values, batch["weights"]),
    }


def _source(values, batch_size):
    arrays = {"inputs": values[:, None], "weights": np.abs(values) + 0.5}
    return data.Arrays(arrays, batch_size)


FLOATS = st.floats(-100, 100, width=32, allow_subnormal=False)
"""Without subnormal numbers, which XLA on CPU treats as zero, unlike numpy."""


@given(
    st.lists(FLOATS, min_size=1, max_size=40),
    st.sampled_from([1, 3, 7, 64]),
)
def test_law_10_evaluation_is_exact_at_any_batch_size(values, batch_size):
    values = np.array(values, np.float32)
    state = trainer.TrainState.create(params={}, rng=jax.random.key(0))
    phase = trainer.evaluation(_measure, _source(values, batch_size))
    _, _, measured = phase.execute(state, None, donate=False)
    got, _, _ = measured.read()
    exact = values.astype(np.float64)
    weights = np.abs(values) + 0.5
    assert got["val/hits"] == np.mean(exact > 0)
    assert got["val/loss"] == pytest.approx(exact.mean(), rel=1e-5, abs=1e-4)
    wanted = np.average(exact, weights=weights.astype(np.float64))
    assert got["val/weighted"] == pytest.approx(wanted, rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("batch_size", [1, 7, 50, 64])
def test_law_10_accuracy_and_loss_of_digits_equal_numpy(task, digits, batch_size):
    arrays = {name: np.asarray(array) for name, array in digits[1].arrays.items()}
    state = task.init(jax.random.key(0), digits[0].example)
    phase = trainer.evaluation(task.measure, data.Arrays(arrays, batch_size))
    got, _, _ = phase.execute(state, None, donate=False)[2].read()
    logits = arrays["inputs"].reshape(50, -1).astype(np.float64) @ np.asarray(state.params["w"])
    right = logits.argmax(-1) == arrays["labels"]
    losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(50), arrays["labels"]]
    assert got["val/accuracy"] == right.mean()
    assert got["val/loss"] == pytest.approx(losses.mean(), abs=1e-5)


def test_padding_does_not_leak_nan():
    def measure(state, batch):
        return {"loss": 1 / batch["inputs"][:, 0]}

    state = trainer.TrainState.create(params={}, rng=jax.random.key(0))
    stream = data.Stream([{"inputs": np.full((4, 1), 2.0)}, {"inputs": np.full((1, 1), 4.0)}])
    phase = trainer.evaluation(measure, stream)
    got, _, _ = phase.execute(state, None, donate=False)[2].read()
    assert got == {"val/loss": pytest.approx((4 * 0.5 + 0.25) / 5)}


def test_a_measure_without_a_value_per_example_is_refused(task, digits):
    phase = trainer.evaluation(lambda state, batch: {"loss": jnp.float32(1)}, digits[1])
    state = task.init(jax.random.key(0), digits[0].example)
    with pytest.raises(ValueError, match=r"'loss' per example, \[32\]; got \[\]"):
        phase.list_metric_names(state)


def test_evaluation_leaves_the_state_and_its_buffers(task, digits):
    state = task.init(jax.random.key(0), digits[0].example)
    phase = trainer.evaluation(task.measure, digits[1])
    after, _, _ = phase.execute(state, None, donate=True)
    chex.assert_trees_all_equal(after, state)
    assert not state.params["w"].is_deleted()


def test_a_reduction_is_the_users_choice(task, digits):
    phase = trainer.training(task.step, digits[0], reduce={"loss": "last"})
    state = task.init(jax.random.key(0), digits[0].example)
    values, traces, _ = phase.execute(state, None, donate=False)[2].read()
    assert values["train/loss"] == traces["train/loss"][-1]
    assert values["train/accuracy"] == pytest.approx(traces["train/accuracy"].mean())
