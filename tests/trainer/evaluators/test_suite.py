"""The arguments of a suite, and which parts of a checkpoint it reads."""

import jax
import jax.numpy as jnp
import pytest

import hooks
import trainer
from trainer.evaluators import Suite


def test_the_parts_read_fill_the_template(start, val):
    carry = {"normalization": {"observations": jnp.zeros(2), "rewards": jnp.zeros(3)}, "env": 1}
    suite = Suite("digits", lambda: start.replace(carry=carry), val)
    wanted = suite.required_trees()
    assert wanted.keys() == {
        *("params", "model_state", "step", "epoch", "rng"),
        "carry/normalization/observations",
    }
    seen = jnp.ones(2)
    wanted |= {"epoch": jnp.int32(3), "carry/normalization/observations": seen}
    state = suite.fill_template(wanted)
    assert int(state.epoch) == 3
    assert state.carry["normalization"]["observations"] is seen
    assert state.carry["normalization"]["rewards"] is carry["normalization"]["rewards"]
    assert state.carry["env"] == 1
    assert state.opt_state == ()


def test_a_template_is_created_once(start, val):
    made = []
    suite = Suite("digits", lambda: made.append(1) or start, val)
    assert not made
    assert suite.state is suite.state
    assert made == [1]


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"name": "a/b"}, ValueError, "a suite needs a name"),
        ({"phases": ()}, ValueError, "names of their own"),
        ({"phases": trainer.Phase("train", lambda state, data: None)}, ValueError, "may change it"),
        ({"carry": "lessons"}, ValueError, r"such as \('lessons',\)"),
    ],
)
def test_wrong_arguments_are_refused(start, val, settings, error, says):
    with pytest.raises(error, match=says):
        Suite(**{"name": "digits", "template": start, "phases": val} | settings)


def test_a_template_that_is_not_a_state_is_refused(val):
    with pytest.raises(TypeError, match="suite 'digits' needs a TrainState"):
        Suite("digits", {"w": jnp.zeros(2)}, val).check()


def test_phases_must_accept_the_template(start, val):
    suite = Suite("digits", start.replace(params={"w": jnp.zeros((3, 10))}), val)
    with pytest.raises(TypeError, match="same shape") as failed:
        suite.check()
    assert "in suite 'digits', on its own template" in failed.value.__notes__


def test_hooks_that_save_are_refused(start, val, tmp_path):
    suite = Suite("digits", start, val, hooks=lambda folder: hooks.save_checkpoints(folder))
    with pytest.raises(ValueError, match="save_checkpoints.* would save it"):
        suite.make_hooks(tmp_path / "evaluations")


def test_a_key_of_another_kind_does_not_fit(start, val):
    suite = Suite("digits", start.replace(rng=jax.random.key(0, impl="rbg")), val)
    assert suite.required_trees()["rng"].dtype != start.rng.dtype
