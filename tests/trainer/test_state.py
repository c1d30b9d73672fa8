"""The state: immutable, named randomness, fingerprints of every bit."""

import dataclasses
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer import TrainState, fingerprint
from trainer.state import attach_host_fields, data_key, stream_seed, strip_host_fields


def test_it_starts_at_step_and_epoch_zero(state):
    chex.assert_shape([state.step, state.epoch], ())
    assert state.step.dtype == state.epoch.dtype == jnp.int32
    assert (int(state.step), int(state.epoch), state.stop) == (0, 0, False)


def test_no_field_can_be_set(state):
    with pytest.raises(dataclasses.FrozenInstanceError):
        state.params = {}


@pytest.mark.parametrize("rng", [0, np.zeros(2, np.uint32), jnp.zeros(2, jnp.uint32)])
def test_a_root_that_is_not_a_typed_key_is_refused(rng):
    with pytest.raises(TypeError, match=r"jax.random.key\(seed\)"):
        TrainState.create(params={}, rng=rng)


def test_a_root_of_several_keys_is_refused():
    with pytest.raises(TypeError, match=r"shape \(2,\)"):
        TrainState.create(params={}, rng=jax.random.split(jax.random.key(0)))


def _bits(key):
    return jax.random.key_data(key).tolist()


def test_a_key_is_the_same_inside_and_outside_jit(state):
    inside = jax.jit(lambda state: state.key("dropout"))(strip_host_fields(state))
    assert _bits(inside) == _bits(state.key("dropout"))


def test_keys_differ_by_name_step_and_epoch_and_not_by_anything_else(state):
    keys = [
        state.key("dropout"),
        state.key("noise"),
        state.replace(step=state.step + 1).key("dropout"),
        state.replace(epoch=state.epoch + 1).key("dropout"),
    ]
    assert len({tuple(_bits(key)) for key in keys}) == 4
    assert _bits(state.replace(params={}, hook_state={"x": 1}).key("dropout")) == _bits(keys[0])


def test_a_key_is_the_same_in_every_process(state):
    code = (
        "import jax; from trainer import TrainState;"
        "state = TrainState.create(params={}, rng=jax.random.key(0));"
        "print(jax.random.key_data(state.key('dropout')).tolist())"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert printed.stdout.strip() == str(_bits(state.key("dropout")))


def test_the_order_of_the_data_depends_on_the_epoch_and_not_on_the_step(state):
    assert _bits(data_key(state.replace(step=state.step + 5))) == _bits(data_key(state))
    assert _bits(data_key(state.replace(epoch=state.epoch + 1))) != _bits(data_key(state))
    assert stream_seed(state.replace(epoch=state.epoch + 1)) == stream_seed(state)


def test_host_fields_are_stripped_and_attached(state):
    state = state.replace(stop=True, scores={"a": 1.0}, hook_state={"b": 2})
    assert len(jax.tree.leaves(strip_host_fields(state))) < len(jax.tree.leaves(state))
    chex.assert_trees_all_equal(attach_host_fields(strip_host_fields(state), state), state)


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.replace(step=s.step + 1),
        lambda s: s.replace(stop=True),
        lambda s: s.replace(hook_state={"patience": 0}),
        lambda s: s.replace(params={**s.params, "w": s.params["w"].at[0].add(1e-7)}),
        lambda s: s.replace(params={"v": s.params["w"], "b": s.params["b"]}),
        lambda s: s.replace(params={**s.params, "w": s.params["w"].astype(jnp.bfloat16)}),
        lambda s: s.replace(params={**s.params, "w": s.params["w"].reshape(1, 2)}),
        lambda s: s.replace(rng=jax.random.key(1)),
    ],
)
def test_a_fingerprint_sees_every_change(state, change):
    assert fingerprint(change(state)) != fingerprint(state)
    assert fingerprint(change(state)) == fingerprint(change(state))


@given(st.dictionaries(st.text(min_size=1), st.one_of(st.floats(), st.integers(), st.booleans())))
def test_a_fingerprint_is_of_the_content(hook_state):
    state = TrainState.create(params={}, rng=jax.random.key(0))
    one, other = state.replace(hook_state=hook_state), state.replace(hook_state=dict(hook_state))
    assert fingerprint(one) == fingerprint(other)
    assert len(fingerprint(one)) == 64


def test_a_fingerprint_distinguishes_types_of_equal_numbers(state):
    kinds = [1, 1.0, True, np.float32(1), np.float64(1), "1"]
    assert len({fingerprint(state.replace(hook_state={"x": kind})) for kind in kinds}) == len(kinds)


def test_a_fingerprint_leaves_scores_out(state):
    assert fingerprint(state.replace(scores={"val/loss": 1.0})) == fingerprint(state)
