"""Analysis of a jaxpr: may rows of a batch depend on one another?"""

import jax
import jax.numpy as jnp
import pytest

import models
from trainer.phases.jaxprs import can_mix_rows

X = jnp.ones((4, 6))


def read(function, x=X):
    return can_mix_rows(lambda _, x: function(x), (), x)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x - x.mean(0),
        lambda x: x / x.max(),
        lambda x: x - x.reshape(-1).mean(),
        lambda x: x @ x.T,
        lambda x: jax.nn.softmax(x @ x.T) @ x,
        lambda x: jnp.cumsum(jax.nn.one_hot(x.argmax(-1), 6), 0),  # places in experts
        lambda x: jnp.sort(x, 0),
        lambda x: x[::-1],
        lambda x: jnp.roll(x, 1, 0),
        lambda x: x - x[0],
        lambda x: x[jnp.argsort(x[:, 0])],
        lambda x: jax.ops.segment_sum(x, jnp.zeros(len(x), int), 3)[0] + x,
        lambda x: jnp.fft.fft(x, axis=0).real,
        lambda x: jnp.convolve(x[:, 0], jnp.ones(3), "same"),
        lambda x: jax.lax.scan(lambda c, row: (c + row, c), x[0] * 0, x)[1],
        lambda x: jax.lax.cond(x.sum() > 0, lambda x: x, lambda x: -x, x),
        jax.jit(lambda x: x - jax.checkpoint(lambda x: x.mean(0))(x)),
        lambda x: jax.pure_callback(lambda x: x, x, x),
        lambda x: x if len(x) == 4 else x.no_such_method(),
    ],
)
def test_rows_that_may_depend_on_one_another(function):
    assert read(function)


@pytest.mark.parametrize(
    "function",
    [
        jax.nn.softmax,
        lambda x: x.reshape(len(x), 2, 3).transpose(1, 0, 2).sum(0),
        lambda x: x.reshape(-1, 3) @ jnp.ones((3, 2)),  # as tokens of rows one after another
        lambda x: jnp.concatenate([x, x], 1)[:, ::-1],
        lambda x: jax.lax.top_k(x, 2)[0],
        lambda x: jnp.ones((9, 3))[x.astype(int)],
        lambda x: x + jax.random.normal(jax.random.key(0), x.shape),
        jax.vmap(lambda row: jnp.sort(jnp.cumsum(row))[::-1] @ jnp.ones((6, 2))),
        lambda x: jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * 2), (0, x))[1],
        lambda x: jax.lax.scan(lambda c, column: (c + column, c), x[:, 0], x.T)[1],
    ],
)
def test_independent_rows(function):
    assert not read(function)


@pytest.mark.parametrize(
    ("network", "x"),
    [
        (models.cnn(classes=3, channels=(2,), batch_norm=True), jnp.ones((4, 8, 8, 1))),
        (
            models.transformer(vocabulary=9, width=8, layers=1, heads=2, context=6, scan=True),
            jnp.ones((4, 6), jnp.int32),
        ),
    ],
)
def test_bundled_networks_need_no_compilation(network, x):
    variables = jax.eval_shape(network.init, jax.random.key(0), x)

    def run(train):
        def outputs(variables, x):
            return network.apply(*variables, x, key=jax.random.key(0), train=train)[0]

        return can_mix_rows(outputs, variables, x)

    assert not run(False)
    assert run(True) == (x.ndim == 4)  # training uses batch statistics
