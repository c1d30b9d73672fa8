"""Error messages for what is no network, optimizer or batch."""

from types import SimpleNamespace

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import models
import trainer
from trainer import data, losses
from trainer.supervised.network_checks import check_network

X = np.ones((8, 3), np.float32)
SOURCE = data.Arrays({"inputs": X, "labels": np.zeros(8, np.int32)}, batch_size=4)


@pytest.mark.parametrize(
    ("wrong", "got", "remedy"),
    [
        (linen.Dense(2), r"flax\.linen\.linear\.Dense", r"models\.from_linen\(module\)"),
        (linen.Dense, r"the class flax\.linen\.linear\.Dense", r"models\.from_linen\(module\)"),
        (
            nnx.Linear(3, 2, rngs=nnx.Rngs(0)),
            r"nnx.*Linear",
            r"from_nnx\(lambda rngs, example: Lin",
        ),
        (nnx.Linear, "the class", r"from_nnx\(lambda rngs, example: Linear"),
        (
            equinox.nn.Linear(3, 2, key=jax.random.key(0)),
            "equinox",
            r"docs/how_to/training/bring_a_network\.md shows",
        ),
        (lambda params, x: x, "a function, <lambda>", r"models\.Network\(init, apply\)"),
        (models.mlp, "a function, mlp", r"its result: call it, mlp\(\.\.\.\)"),
        ((None, None), "tuple", r"models\.Network\(init, apply\)"),
        (None, "NoneType", r"models\.Network\(init, apply\)"),
    ],
)
def test_the_error_names_what_is_no_network(wrong, got, remedy):
    with pytest.raises(
        TypeError, match=rf"supervised needs a network, .*got .*{got}.*pass .*{remedy}"
    ):
        trainer.supervised(wrong, losses.classification, optax.sgd(0.1))


def test_any_two_functions_are_a_network():
    class Own:
        @staticmethod
        def init(key, x): ...

        @staticmethod
        def apply(params, model_state, x, *, key, train): ...

    for network in (
        Own,
        Own(),
        SimpleNamespace(init=Own.init, apply=Own.apply),
        models.mlp(classes=2),
    ):
        check_network(network, "it")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((jax.random.key(0), X), r"float32\[8, 3\]: call task\.init\(key, \{'inputs': x\}\)"),
        ((jax.random.key(0), SOURCE), r"a source, Arrays: call task\.init\(key, source\.example\)"),
        ((jax.random.key(0), (X, X)), r"tuple: call task\.init"),
        ((0, SOURCE.example), r"key must be a typed key, jax\.random\.key\(seed\); got 0"),
        ((SOURCE.example, jax.random.key(0)), "key must be a typed key"),
    ],
)
def test_the_error_names_what_is_no_key_or_no_batch(task, arguments, said):
    with pytest.raises(TypeError, match=said):
        task.init(*arguments)


def test_the_error_names_functions_that_return_no_pair():
    """An array of two rows and a dict of two names would be unpacked without a word."""
    two = {"inputs": X[:2], "labels": np.zeros(2, np.int32)}
    good = lambda key, x: ({"w": jnp.zeros((3, 2))}, {})  # noqa: E731
    forward = lambda params, model_state, x, *, key, train: x @ params["w"]  # noqa: E731
    task = trainer.supervised(
        SimpleNamespace(init=good, apply=forward), losses.classification, optax.sgd(0.1)
    )
    state = task.init(jax.random.key(0), two)
    with pytest.raises(
        TypeError, match=r"apply must return \(outputs, model_state\), .*float32\[2, 2\]"
    ):
        task.step(state, two)
    alone = lambda key, x: {"w": jnp.zeros((3, 2)), "b": jnp.zeros(2)}  # noqa: E731
    task = trainer.supervised(
        SimpleNamespace(init=alone, apply=forward), losses.classification, optax.sgd(0.1)
    )
    with pytest.raises(TypeError, match=r"init must return \(params, model_state\), .*dict"):
        task.init(jax.random.key(0), two)
