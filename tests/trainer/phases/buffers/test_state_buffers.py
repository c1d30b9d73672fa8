"""The structure of a state, and which arrays share buffers."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hooks
import trainer
from trainer.checks.pytrees import list_differences
from trainer.phases.buffers.state_buffers import (
    conform_state,
    copy_state,
    get_buffer_addresses,
    unshare_buffers,
)


def test_differences_name_what_is_missing_new_and_changed():
    lines = list_differences({"a": jnp.ones(2), "b": 1}, {"a": jnp.ones(2, int), "c": None, "d": 1})
    assert lines == ["b: int is missing", "d: int is new", "a: float32[2] became int32[2]"]


def test_differences_in_structure_are_found():
    assert list_differences({"a": ()}, {"a": []}) != []
    assert list_differences({"a": (1, 2)}, {"a": (3, 4)}) == []


def test_a_copy_shares_no_buffer_and_has_no_weak_type(state):
    weak = state.replace(carry={"weak": jnp.asarray(1.0), "python": 2.0, "numpy": np.ones(2)})
    mine = copy_state(weak)
    theirs = {address for leaf in jax.tree.leaves(weak) for address in get_buffer_addresses(leaf)}
    leaves = jax.tree.leaves(mine.replace(stop=None))
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    assert theirs.isdisjoint(address for leaf in leaves for address in get_buffer_addresses(leaf))
    assert not mine.carry["weak"].weak_type
    chex.assert_trees_all_equal(mine.params, weak.params)


def test_a_view_under_another_object_is_the_same_buffer(state):
    array = jnp.arange(4.0)
    view = jax.device_put(array, array.sharding)
    assert get_buffer_addresses(view) == get_buffer_addresses(array)
    kept = state.replace(params={"w": array, "b": array}, hook_state={"best": view, "n": 1})
    apart = unshare_buffers(kept)
    leaves = jax.tree.leaves((apart.params, apart.hook_state))
    addresses = [address for leaf in leaves for address in get_buffer_addresses(leaf)]
    assert len(set(addresses)) == len(addresses) == 3
    chex.assert_trees_all_equal(apart.hook_state["best"], array)


def test_without_shared_buffers_the_state_is_returned(state):
    mine = copy_state(state)
    assert unshare_buffers(mine) is mine


def test_weak_types_and_host_arrays_are_converted(state):
    put = state.replace(params={"w": np.ones(2, np.float32), "b": jnp.asarray(1.0)})
    right = conform_state(state, put)
    assert right.params["w"].sharding == state.params["w"].sharding
    assert not right.params["b"].weak_type
    assert right.opt_state is not None


def test_a_hook_declared_with_rekeys_may_change_the_root_key(state, phase):
    def reseed(state, metrics):
        return state.replace(rng=jax.random.fold_in(state.rng, 1))

    with pytest.raises(ValueError, match=r"'reseed' replaced state.rng.* declare hooks\.rekeys"):
        trainer.fit(state, phase, epochs=1, hooks=reseed)
    after, _ = trainer.fit(state, phase, epochs=1, hooks=hooks.rekeys(reseed))
    assert bool(after.rng == jax.random.fold_in(state.rng, 1))
