"""Hyperparameters in an optimizer's state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from trainer.supervised.hyperparams import (
    check_hyperparam,
    fill_leaf,
    get_hyperparam,
    hyperparam_names,
    map_hyperparam,
    set_hyperparam,
)

PARAMS = {"a": jnp.ones(2), "b": jnp.ones(3)}


def inject(optimizer, **numbers):
    return optax.inject_hyperparams(optimizer)(**numbers)


TWO = optax.multi_transform(
    {
        "a": optax.chain(optax.clip(1.0), inject(optax.sgd, learning_rate=0.5, momentum=0.9)),
        "b": inject(optax.adamw, learning_rate=0.25),
    },
    {"a": "a", "b": "b"},
).init(PARAMS)


def test_all_groups_that_have_a_hyperparameter_are_found_and_set():
    assert get_hyperparam(TWO, "learning_rate") == {"a": 0.5, "b": 0.25}
    after = set_hyperparam(TWO, "learning_rate", lambda rate: rate / 2)
    assert get_hyperparam(after, "learning_rate") == {"a": 0.25, "b": 0.125}
    assert get_hyperparam(after, "momentum") == get_hyperparam(TWO, "momentum")
    assert jax.tree.structure(after) == jax.tree.structure(TWO)
    assert {"b1", "learning_rate", "momentum", "weight_decay"} <= set(hyperparam_names(TWO))


def test_one_group_can_be_set_alone():
    after = set_hyperparam(TWO, "learning_rate", lambda rate: rate / 2, group="b")
    assert get_hyperparam(after, "learning_rate") == {"a": 0.5, "b": 0.125}
    chained = optax.chain(
        inject(optax.sgd, learning_rate=0.5), inject(optax.sgd, learning_rate=1.0)
    )
    after = set_hyperparam(chained.init(PARAMS), "learning_rate", lambda rate: 0.25, group="1")
    assert get_hyperparam(after, "learning_rate") == {"0": 0.5, "1": 0.25}


def test_an_error_lists_the_groups_that_have_the_hyperparameter():
    with pytest.raises(ValueError, match=r"rate of a group 'c'.* \(there is: a/learning_rate, b/l"):
        check_hyperparam("it", TWO, "learning_rate", group="c")
    with pytest.raises(
        ValueError, match=r"the group 'b', which keeps no such number \(there is: b1, b2"
    ):
        check_hyperparam("it", TWO, "momentum", group="b")
    check_hyperparam("it", TWO, "momentum", group="a")


def test_a_schedule_in_one_group_does_not_prevent_setting_the_other():
    both = optax.multi_transform(
        {
            "a": inject(optax.sgd, learning_rate=optax.constant_schedule(0.1)),
            "b": inject(optax.sgd, learning_rate=0.2),
        },
        {"a": "a", "b": "b"},
    ).init(PARAMS)
    check_hyperparam("it", both, "learning_rate", group="b")
    with pytest.raises(ValueError, match="a schedule, which sets"):
        check_hyperparam("it", both, "learning_rate", group="a")


@pytest.mark.parametrize("name", ["learning_rate", "absent"])
def test_an_unchanged_state_is_the_same_object(name):
    assert set_hyperparam(TWO, name, lambda value: value) is TWO


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_a_value_takes_the_dtype_and_shape_of_the_leaf_that_it_replaces(dtype):
    leaf = jnp.zeros(3, dtype)
    after = fill_leaf(leaf, np.float64(0.1))
    assert (after.dtype, after.shape, after.sharding) == (leaf.dtype, leaf.shape, leaf.sharding)
    assert after.tolist() == jnp.full(3, 0.1, dtype).tolist()
    assert fill_leaf(after, 0.1) is after


def test_a_hyperparameter_can_be_mapped_within_a_jitted_function():
    after = jax.jit(lambda s: map_hyperparam(s, "learning_rate", lambda rate: rate * 2))(TWO)
    assert get_hyperparam(after, "learning_rate") == {"a": 1.0, "b": 0.5}


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        (optax.adam(0.1), r"without it \(there is: nothing\)"),
        (inject(optax.clip, max_delta=1.0), r"without it \(there is: max_delta\)"),
        (inject(optax.sgd, learning_rate=optax.constant_schedule(0.1)), "a schedule, which sets"),
        (inject(optax.sgd, learning_rate=1), "an integer, 1, which cannot take fractions"),
    ],
)
def test_a_hyperparameter_that_cannot_be_set_is_an_error(optimizer, said):
    with pytest.raises(ValueError, match=f"it needs an optimizer whose learning_rate .*{said}"):
        check_hyperparam("it", optimizer.init(PARAMS), "learning_rate")
    assert "learning_rate" not in hyperparam_names(optimizer.init(PARAMS))


def test_a_prefix_of_a_name_is_another_name():
    opt_state = inject(optax.adam, learning_rate=0.1, b1=optax.constant_schedule(0.9)).init(PARAMS)
    check_hyperparam("it", opt_state, "learning_rate")
    with pytest.raises(ValueError, match="a schedule"):
        check_hyperparam("it", opt_state, "b1")
    with pytest.raises(ValueError, match="or do without"):
        check_hyperparam("it", opt_state, "b", instead="do without")
