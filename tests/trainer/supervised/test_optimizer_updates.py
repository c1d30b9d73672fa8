"""Extra arguments of optax's optimizers, with those that take more than gradients."""

from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import models
import trainer
from trainer.rl import ppo

pytestmark = pytest.mark.usefixtures("compiled_quickly")

INPUTS = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
BATCH = {"inputs": INPUTS, "labels": INPUTS @ np.array([1.0, -2.0, 0.5], "float32")}


def regression(outputs, batch):
    return {"loss": (outputs - batch["labels"]) ** 2}


def look(params, model_state, x, *, key, train):
    noise = 1 + 0.1 * jax.random.normal(key, (len(x),)) if train else 1
    return (x @ params["w"]) * noise, {"seen": model_state["seen"] + train}


NOISY = SimpleNamespace(
    init=lambda key, x: ({"w": jnp.zeros(3)}, {"seen": jnp.zeros((), jnp.int32)}), apply=look
)
"""A network whose loss depends on the step's key."""


def task(optimizer, **settings):
    return trainer.supervised(NOISY, regression, optimizer, **settings)


def mean_loss(params, key, parts):
    """Give the mean loss as a step computes it, in so many micro-batches."""
    keys = [key] if parts == 1 else [jax.random.fold_in(key, n) for n in range(parts)]
    errors = [
        look(params, {"seen": 0}, x, key=k, train=True)[0] - y
        for x, y, k in zip(
            *([BATCH[n][part::parts] for part in range(parts)] for n in ("inputs", "labels")),
            keys,
            strict=True,
        )
    ]
    return jnp.mean(jnp.stack(errors) ** 2)


ASKING = {
    "reduce_on_plateau": optax.chain(optax.sgd(0.1), contrib.reduce_on_plateau(patience=1)),
    "polyak_sgd": optax.polyak_sgd(),
    "momo": contrib.momo(0.5),
    "lbfgs": optax.lbfgs(),
    "backtracking": optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(15)),
    "sophia": contrib.sophia(0.1),
    "sam_opaque": contrib.sam(optax.sgd(0.1), optax.sgd(0.05), opaque_mode=True),
}


@pytest.mark.parametrize(
    ("name", "accumulate"), [*((name, 1) for name in ASKING if name != "lbfgs"), ("lbfgs", 2)]
)
def test_an_optimizer_receives_the_arguments_that_it_takes(name, accumulate):
    """One step is the one that is worked out with optax alone, by the same key."""
    optimizer = ASKING[name]
    fit = task(optimizer, accumulate=accumulate, clip_norm=1.0)
    state = fit.init(jax.random.key(0), BATCH)
    key = state.key("network")

    def value_fn(params):
        return mean_loss(params, key, accumulate)

    value, grads = jax.value_and_grad(value_fn)(state.params)
    assert optax.tree.norm(grads) > 1
    clipped = optax.tree.scale(1 / optax.tree.norm(grads), grads)
    extra = {
        "lbfgs": {"value": value, "grad": grads, "value_fn": value_fn},
        "backtracking": {"value": value, "grad": grads, "value_fn": value_fn},
        "sophia": {"obj_fn": value_fn},
        "sam_opaque": {"grad_fn": lambda params, n: jax.grad(value_fn)(params)},
    }.get(name, {"value": value})
    wanted, _ = optimizer.update(clipped, state.opt_state, state.params, **extra)
    after, _ = jax.jit(fit.step)(state, BATCH)
    moved = optax.tree.sub(after.params, state.params)
    chex.assert_trees_all_close(moved, wanted, rtol=1e-4, atol=1e-6)
    assert optax.tree.norm(wanted) > 0
    assert int(after.model_state["seen"]) == accumulate


def test_a_plateau_lowers_the_rate_within_fit():
    """The scale halves after two steps that are no better than the first."""
    source = trainer.data.Arrays(BATCH, 8)
    optimizer = optax.chain(optax.sgd(0.0), contrib.reduce_on_plateau(0.5, patience=2, rtol=0.5))
    fit = task(optimizer)
    state, _ = trainer.fit(
        fit.init(jax.random.key(0), BATCH), trainer.training(fit.step, source), epochs=3
    )
    assert float(state.opt_state[1].scale) == 0.5


def test_an_optimizer_without_extra_arguments_receives_none():
    """Sharpness-aware minimisation takes none, alone or in a chain."""
    for make in (lambda sam: sam, lambda sam: optax.chain(optax.clip(1.0), sam)):
        fit = task(make(contrib.sam(optax.sgd(0.1), optax.sgd(0.05))))
        state = fit.init(jax.random.key(0), BATCH)
        for _ in range(2):
            state, _ = fit.step(state, BATCH)
        assert optax.tree.norm(state.params) > 0


def test_chained_transformations_receive_the_extra_arguments():
    for make in (lambda steps: steps, lambda steps: steps.gradient_transformation()):
        fit = task(make(optax.MultiSteps(optax.polyak_sgd(), 2)))
        first = fit.init(jax.random.key(0), BATCH)
        second, _ = fit.step(first, BATCH)
        third, _ = fit.step(second, BATCH)
        assert optax.tree.norm(second.params) == optax.tree.norm(first.params)
        assert optax.tree.norm(third.params) > optax.tree.norm(first.params)


def test_schedule_free_trains():
    fit = task(contrib.schedule_free_sgd(0.5))
    state = fit.init(jax.random.key(0), BATCH)
    phase = trainer.training(fit.step, trainer.data.Arrays(BATCH, 8))
    state, history = trainer.fit(state, phase, epochs=20)
    found = contrib.schedule_free_eval_params(state.opt_state, state.params)
    assert history[-1]["train/loss"] < 0.2 * history[0]["train/loss"]
    chex.assert_trees_all_close(found["w"], jnp.array([1.0, -2.0, 0.5]), atol=0.3)


def test_a_factory_of_optimizers_is_an_error():
    for wrong, got in [
        (optax.adam, "the function adam, which makes one: call it, adam"),
        (optax.linear_schedule(1.0, 0.0, 3), "a schedule of the step"),
        (0.001, "float 0.001"),
        ("adam", "str 'adam'"),
        (optax.GradientTransformation, "the function GradientTransformation"),
    ]:
        with pytest.raises(TypeError, match=rf"supervised needs an optimizer, .*got {got}"):
            task(wrong)


def test_lookahead_is_an_error(caplog):
    slow = optax.lookahead(optax.sgd(0.1), sync_period=5, slow_step_size=0.5)
    with pytest.raises(
        ValueError, match=r"supervised cannot train with optax.lookahead: .*average"
    ):
        task(slow)
    hidden = optax.multi_transform({"a": slow, "b": optax.sgd(0.1)}, {"w": "a"})
    with pytest.raises(ValueError, match=r"cannot train with optax.lookahead"):
        task(hidden).init(jax.random.key(0), BATCH)


@pytest.mark.parametrize(
    "other",
    [optax.adam(0.1), optax.lion(0.1), optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)],
    ids=["adam", "lion", "injected"],
)
@pytest.mark.parametrize("own", [optax.sgd(0.1), optax.adabelief(0.1), optax.lbfgs()])
def test_the_state_of_another_optimizer_is_an_error_before_training(own, other):
    fit, state = task(own), task(other).init(jax.random.key(0), BATCH)
    phase = trainer.training(fit.step, trainer.data.Arrays(BATCH, 8))
    with pytest.raises(ValueError, match=r"opt_state must be one that this optimizer made"):
        trainer.fit(state, phase, epochs=1)


def test_the_state_of_other_parameters_is_an_error():
    fit = task(optax.adam(0.1))
    state = fit.init(jax.random.key(0), BATCH)
    other = fit.optimizer.init({"w": jnp.zeros((3, 1))})
    with pytest.raises(ValueError, match=r"0/mu/w: float32\[3\] became float32\[3, 1\]"):
        fit.step(state.replace(opt_state=other), BATCH)


def test_a_line_search_in_float16_is_an_error():
    fit = task(optax.lbfgs(), precision="float16")
    state = fit.init(jax.random.key(0), BATCH)
    with pytest.raises(ValueError, match=r"value_fn.*float16"):
        jax.eval_shape(fit.step, state, BATCH)


def test_a_missing_argument_of_an_optimizer_is_named():
    def update(updates, opt_state, params=None, *, labels, **extra):
        return updates, opt_state

    fit = task(optax.GradientTransformationExtraArgs(optax.init_empty_state, update))
    with pytest.raises(TypeError, match="'labels'") as caught:
        fit.step(fit.init(jax.random.key(0), BATCH), BATCH)
    assert (
        "where it takes them, value, grad, value_fn; an optimizer that" in caught.value.__notes__[0]
    )


def test_ppo_checks_its_optimizer():
    with pytest.raises(TypeError, match="ppo needs an optimizer"):
        ppo(models.actor_critic(actions=2), None, optax.adam)
