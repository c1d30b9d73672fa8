"""Executors: chosen by jaxpr and platform; both compute the same."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import trainer
from trainer import data, fingerprint
from trainer.phases.executors import choose_executor
from trainer.phases.jaxprs import has_convolution


def convolve(x):
    return lax.conv(x[None, None], jnp.ones((1, 1, 2, 2)), (1, 1), "SAME")[0, 0]


def in_cond(x):
    return lax.cond(x.sum() > 0, convolve, lambda x: x, x)


def in_scan(x):
    return lax.scan(lambda x, _: (convolve(x), None), x, None, length=2)[0]


def in_while(x):
    return lax.while_loop(lambda x: x.sum() < 0, convolve, x)


@jax.custom_vjp
def in_custom_vjp(x):
    return convolve(x)


in_custom_vjp.defvjp(lambda x: (convolve(x), None), lambda _, g: (g,))


@pytest.mark.parametrize(
    "function",
    [
        convolve,
        jax.jit(convolve),
        jax.remat(convolve),
        lambda x: jax.vmap(convolve)(x[None])[0],
        lambda x: jax.grad(lambda x: convolve(x).sum())(x),
        in_cond,
        in_scan,
        in_while,
        in_custom_vjp,
        jax.jit(jax.remat(lambda x: in_scan(in_cond(x)))),
    ],
)
def test_a_convolution_is_found_at_any_depth(function):
    assert has_convolution(jax.make_jaxpr(function)(jnp.ones((4, 4))))


@pytest.mark.parametrize(
    "function",
    [lambda x: x @ x, lambda x: lax.scan(lambda x, _: (x @ x, None), x, None, length=2)[0]],
)
def test_dots_are_not_convolutions(function):
    assert not has_convolution(jax.make_jaxpr(function)(jnp.ones((4, 4))))


@pytest.mark.parametrize(
    ("asked", "function", "platform", "chosen"),
    [
        ("auto", convolve, "cpu", "step"),
        ("auto", convolve, "gpu", "scan"),
        ("auto", convolve, "tpu", "scan"),
        ("auto", lambda x: x @ x, "cpu", "scan"),
        ("scan", convolve, "cpu", "scan"),
        ("step", lambda x: x @ x, "gpu", "step"),
    ],
)
def test_the_choice_follows_the_rule_and_gives_a_reason(asked, function, platform, chosen):
    choice = choose_executor(asked, jax.make_jaxpr(function)(jnp.ones((4, 4))), platform)
    assert choice.executor == chosen
    assert len(choice.reason) > 5


def test_an_unknown_executor_is_refused(task, digits):
    with pytest.raises(ValueError, match="auto, scan or step; got 'fast'"):
        trainer.training(task.step, digits[0], executor="fast")


def _trained(task, source, executor, epochs=3):
    state = task.init(jax.random.key(0), source.example)
    phase = trainer.training(task.step, source, executor=executor)
    return trainer.fit(state, phase, epochs=epochs)


def test_law_4_both_give_the_same_bits_on_dots(task, digits):
    (scanned, history), (stepped, other) = (
        _trained(task, digits[0], executor) for executor in ("scan", "step")
    )
    assert fingerprint(scanned) == fingerprint(stepped)
    assert history[-1]["train/loss"] == pytest.approx(other[-1]["train/loss"], rel=1e-6)


class Convolving(nn.Module):
    """The smallest convolutional network."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(2, (3, 3))(x))
        return nn.Dense(10)(x.reshape(len(x), -1))


def test_law_4_both_agree_to_a_millionth_with_convolutions(digits):
    import optax

    from models import from_linen
    from trainer import losses

    task = trainer.supervised(from_linen(Convolving()), losses.classification, optax.sgd(0.1))
    small = data.Arrays({k: np.asarray(v)[:64] for k, v in digits[0].arrays.items()}, 32)
    (scanned, _), (stepped, _) = (
        _trained(task, small, executor, epochs=2) for executor in ("scan", "step")
    )
    chex.assert_trees_all_close(scanned.params, stepped.params, atol=1e-6)


def test_a_scan_writes_all_metrics_of_a_step_at_once():
    source = data.Arrays({"inputs": np.ones((6, 1), np.float32)}, batch_size=2)

    def step(state, batch):
        x = batch["inputs"].sum()
        return state.replace(step=state.step + 1), {f"m{i}": x * i for i in range(50)}

    phase = trainer.training(step, source, executor="scan")
    state = trainer.TrainState.create(params={}, rng=jax.random.key(0))
    traced, _ = phase._trace(trainer.state.strip_host_fields(state), source.arrays, False)
    (scan,) = (e for e in traced.jaxpr.eqns if e.primitive.name == "scan")
    assert [out.aval.shape for out in scan.outvars if out.aval.ndim == 2] == [(3, 51)]
    values, traces, taken = phase.execute(state, None, donate=False)[2].read()
    assert (values["train/m7"], taken) == (14.0, 3)
    np.testing.assert_array_equal(traces["train/m49"], [98.0] * 3)


def test_both_give_the_same_traces(task, digits):
    traces = []
    for executor in ("scan", "step"):
        state = task.init(jax.random.key(0), digits[0].example)
        phase = trainer.training(task.step, digits[0], executor=executor)
        _, _, measured = phase.execute(state, None, donate=False)
        _, steps, last = measured.read()
        assert last == 6
        traces.append(steps)
    chex.assert_trees_all_close(*traces, rtol=1e-6)
    chex.assert_shape(traces[0]["train/loss"], (6,))
