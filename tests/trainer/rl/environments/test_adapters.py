"""Spaces of other libraries: recognized by their attributes, or refused."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainer.rl.environments import Box, Discrete, adapters


def box(low, high, shape=(2,), dtype=np.float32):
    return SimpleNamespace(low=low, high=high, shape=shape, dtype=dtype)


def specs(low, high, shape=(), dtype=np.float32):
    return SimpleNamespace(minimum=low, maximum=high, shape=shape, dtype=dtype)


def test_nested_spaces_are_named_by_their_path():
    declared = SimpleNamespace(
        spaces={"where": specs(0, 3), "what": SimpleNamespace(spaces=(box(-1, 1), box(-2, 2)))}
    )
    found = {path: part.shape for path, part in adapters.flatten_space(declared)}
    assert found == {"where": (), "what/0": (2,), "what/1": (2,)}
    named = adapters.flatten_observation({"where": 1, "what": (np.zeros(2), np.ones(2))})
    assert set(named) == set(found)


def test_a_record_of_specs_is_flattened_by_its_attributes():
    declared = SimpleNamespace(_name="observation", at=SimpleNamespace(row=specs(0, 4)))
    assert [path for path, _ in adapters.flatten_space(declared)] == ["at/row"]


def test_observations_have_their_actual_dtype_and_the_declared_bounds():
    given = jax.ShapeDtypeStruct((2,), jnp.int32)
    space = adapters.observation_space(box(np.array([-1, -3]), np.array([5, 2])), given)
    assert space == Box((2,), -3.0, 5.0, jnp.dtype(jnp.int32))


def test_a_category_is_discrete_whatever_the_name_of_its_count():
    given = jax.ShapeDtypeStruct((), jnp.int32)
    for declared in (SimpleNamespace(n=3, shape=()), SimpleNamespace(num_values=3, shape=())):
        assert adapters.observation_space(declared, given) == Discrete(3)
        assert adapters.action_space(declared, "it") == Discrete(3)


def test_observations_without_bounds_are_unbounded():
    space = adapters.observation_space(object, jax.ShapeDtypeStruct((), jnp.float32))
    assert space == Box(())


def test_actions_with_the_same_bounds_are_a_box():
    declared = box(np.full(2, -2.0), np.full(2, 2.0), dtype=np.float64)
    assert adapters.action_space(declared, "it") == Box((2,), -2.0, 2.0)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        (
            SimpleNamespace(nvec=np.array([2, 3]), shape=(2,), dtype=np.int64),
            "one category of several, .*wrap the environment so that one",
        ),
        (
            SimpleNamespace(n=4, shape=(4,), dtype=np.int8),
            "one category of several, .*wrap the environment so that one",
        ),
        (
            specs(0, 21, shape=(2,), dtype=np.int16),
            "one category of several, .*wrap the environment so that one",
        ),
        (
            SimpleNamespace(spaces={"a": box(0, 1)}),
            "one category of several, .*wrap the environment so that one",
        ),
        (box(np.array([-1.0, 0.0]), np.ones(2)), "the same for all entries"),
    ],
)
def test_other_actions_are_refused(declared, message):
    with pytest.raises(ValueError, match=f"{message}"):
        adapters.action_space(declared, "it")


def test_weak_types_are_stripped_and_keys_stay():
    def made():
        return adapters.strip_weak_types(
            {"time": 0, "at": 1.5, "key": jax.random.key(3), "on": True}
        )

    shapes = jax.eval_shape(made)
    assert [shapes[name].dtype for name in ("time", "at", "on")] == [jnp.int32, jnp.float32, bool]
    assert not shapes["time"].weak_type
    assert not shapes["at"].weak_type
    assert made()["key"] == jax.random.key(3)


def test_observations_are_cast_to_the_dtypes_of_their_space():
    space = {"a": Discrete(3), "b": Box((1,))}
    got = adapters.cast_observation(space, {"a": jnp.int8(2), "b": jnp.ones(1, jnp.float16)})
    assert {name: str(x.dtype) for name, x in got.items()} == {"a": "int32", "b": "float32"}
