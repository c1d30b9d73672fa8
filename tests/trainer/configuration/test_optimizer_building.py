"""The schedule and the optimizer that a configuration says, against numbers worked by hand."""

import logging

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import trainer
from trainer.configuration import Optimizer, Schedule, TrainingConfig, optimizer, schedule
from trainer.supervised.optimizers import decay_mask

pytestmark = pytest.mark.usefixtures("compiled_quickly")

PARAMS = {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.full(2, 2.0), "conv": jnp.ones((1, 1, 1, 2))}


def _rates(plan, *steps, total=100, peak=1.0):
    config = TrainingConfig(optimizer=Optimizer(learning_rate=peak), schedule=plan)
    rate = schedule(config, total)
    return [float(rate(step)) for step in steps]


@pytest.mark.parametrize(
    ("plan", "steps", "rates"),
    [
        (Schedule(warmup_steps=10), (0, 5, 10, 99), [0, 0.5, 1, 1]),
        (Schedule("linear"), (0, 50, 100, 150), [1, 0.5, 0, 0]),
        (Schedule("linear", decay_to=0.2), (50, 100), [0.6, 0.2]),
        (Schedule("linear", warmup_share=0.2), (0, 10, 20, 60, 100), [0, 0.5, 1, 0.5, 0]),
        (Schedule("cosine"), (0, 25, 50, 100), [1, 0.853553, 0.5, 0]),  # (1 + cos(pi t)) / 2
        (Schedule("cosine", decay_to=0.5), (0, 50, 100), [1, 0.75, 0.5]),
        (Schedule("cosine", warmup_steps=20, steps=120), (20, 70, 120), [1, 0.5, 0]),
    ],
)
def test_the_rate_is_as_worked_by_hand(plan, steps, rates):
    assert _rates(plan, *steps) == pytest.approx(rates, abs=1e-6)
    assert _rates(plan, *steps, peak=0.1) == pytest.approx([rate / 10 for rate in rates], abs=1e-6)


def test_a_constant_rate_is_a_number():
    assert schedule(TrainingConfig(), 0) == 1e-3


def test_a_schedule_that_ends_before_the_run_warns(caplog):
    with caplog.at_level(logging.WARNING, "entracte"):
        _rates(Schedule("cosine"), 0)
        _rates(Schedule(warmup_steps=3, steps=50), 0)
        assert not caplog.records
        _rates(Schedule("cosine", steps=50, decay_to=0.1), 0)
    (record,) = caplog.records
    assert "over after 50 steps and the run has 100" in record.getMessage()
    assert record.getMessage().endswith("0.1")


@pytest.mark.parametrize(
    ("plan", "total", "said"),
    [
        (Schedule("cosine"), 0, "at least 1 step of training; got 0"),
        (Schedule(warmup_steps=100), 100, "takes 100 steps and the schedule has 100"),
        (Schedule("linear", warmup_steps=9, steps=5), 100, "takes 9 steps and the schedule has 5"),
    ],
)
def test_an_impossible_schedule_is_refused(plan, total, said):
    with pytest.raises(ValueError, match=said):
        _rates(plan, 0, total=total)


def _updates(settings, grads, steps=1, **config):
    """Return the last of so many updates by the same gradients."""
    transform = optimizer(TrainingConfig(optimizer=settings, **config), total_steps=10)
    state = transform.init(PARAMS)
    for _ in range(steps):
        updates, state = transform.update(grads, state, PARAMS)
    return updates, state


ZEROS = {name: jnp.zeros_like(leaf) for name, leaf in PARAMS.items()}
ONES = {name: jnp.ones_like(leaf) for name, leaf in PARAMS.items()}


@pytest.mark.parametrize("name", ["adamw", "sgd", "lion", "muon"])
def test_weight_decay_is_for_leaves_with_two_or_more_axes(name):
    updates, _ = _updates(Optimizer(name, 0.1, weight_decay=0.5), ZEROS)
    # Nothing but the decay: -0.1 * 0.5 * parameter.
    expected = {
        "kernel": jnp.full((2, 2), -0.1),
        "bias": jnp.zeros(2),
        "conv": ZEROS["conv"] - 0.05,
    }
    chex.assert_trees_all_close(updates, expected)


@pytest.mark.parametrize(
    ("settings", "plain"),
    [
        (Optimizer(), optax.adamw(1e-3, mask=decay_mask)),
        (Optimizer(betas=(0.8, 0.9)), optax.adamw(1e-3, 0.8, 0.9, mask=decay_mask)),
        (Optimizer("adam", 0.1), optax.adam(0.1)),
        (Optimizer("sgd", 0.1, momentum=0.9), optax.sgd(0.1, momentum=0.9)),
        (Optimizer("lion", 0.1, betas=(0.8, 0.9)), optax.lion(0.1, 0.8, 0.9, mask=decay_mask)),
        (Optimizer("muon", 0.1, momentum=0.9), optax.contrib.muon(0.1, beta=0.9)),
    ],
    ids=lambda value: value.name if isinstance(value, Optimizer) else "",
)
def test_the_optimizer_is_optax_s(settings, plain):
    state = plain.init(PARAMS)
    for _ in range(2):
        expected, state = plain.update(ONES, state, PARAMS)
    chex.assert_trees_all_close(_updates(settings, ONES, steps=2)[0], expected, rtol=1e-6)


def test_the_rate_is_in_the_state_step_by_step():
    settings, plan = Optimizer("sgd", 1.0), Schedule("linear")
    for steps, rate in ((1, 1.0), (2, 0.9), (10, 0.1)):
        updates, state = _updates(settings, ONES, steps, schedule=plan)
        assert float(state.hyperparams["learning_rate"]) == pytest.approx(rate)
        assert float(updates["bias"][0]) == pytest.approx(-rate)


def test_a_constant_rate_can_be_set_by_hooks():
    transform = optimizer(TrainingConfig(optimizer=Optimizer("sgd", 1.0)), total_steps=10)
    state = optax.tree.set(transform.init(PARAMS), learning_rate=jnp.float32(0.5))
    updates, _ = transform.update(ONES, state, PARAMS)
    assert float(updates["bias"][0]) == -0.5


def test_a_task_reports_the_rate(linear, digits):
    config = TrainingConfig(optimizer=Optimizer("sgd", 0.02), schedule=Schedule("cosine"))
    task = trainer.supervised(linear, trainer.losses.classification, optimizer(config, 10))
    example = digits[0].example
    _, metrics = jax.jit(task.step)(task.init(jax.random.key(0), example), example)
    assert float(metrics["learning_rate"]) == pytest.approx(0.02)


def test_a_constant_rate_whose_warmup_rounds_to_nothing_is_constant():
    config = TrainingConfig(schedule=Schedule("constant", warmup_share=0.001))
    assert schedule(config, 100) == config.optimizer.learning_rate
