"""Teachers: restored from a run, refused if they do not fit; and the loss towards them."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from trainer import Checkpoints, TrainState
from trainer.rl import policies
from trainer.rl.distillation import kickstart, restore_teacher
from trainer.rl.environments import Box, Discrete, cartpole
from trainer.rl.normalization import init_statistics, update_statistics

pytestmark = pytest.mark.usefixtures("compiled_quickly")

ENV = cartpole()
WIDE = models.actor_critic(actions=2, hidden=(8, 4))
GAUSSIAN = models.actor_critic(actions=1, hidden=(4,), continuous=True)


def save(run, network, env, scores=None, epoch=1, **carry):
    """Save a policy as the run that trained it would."""
    weights = policies.init_weights(network, env, jax.random.key(epoch))
    state = TrainState.create(
        params=weights.params,
        model_state=weights.model_state,
        opt_state={"mu": weights.params},
        rng=jax.random.key(0),
        carry={"environment": jnp.zeros(3), **carry},
    )
    with Checkpoints(run) as checkpoints:
        checkpoints.save(state.replace(epoch=jnp.int32(epoch)), scores=scores or {})
    return weights


def test_it_acts_as_it_did_in_its_run(tmp_path):
    observed = jax.random.normal(jax.random.key(3), (20, 4)) * 7
    seen = update_statistics(init_statistics(jnp.zeros(4)), observed)
    weights = save(tmp_path, WIDE, ENV, normalization={"observations": seen})
    teacher = restore_teacher(WIDE, tmp_path, ENV)
    outputs, again = (
        policies.forward(WIDE, w, observed, (), jnp.zeros(20, bool))[0]
        for w in (weights._replace(statistics=seen), teacher.weights)
    )
    assert teacher.network is WIDE
    np.testing.assert_array_equal(outputs["logits"], again["logits"])
    np.testing.assert_array_equal(outputs["value"], again["value"])


def test_its_observations_are_not_normalized_if_its_run_did_not_normalize_them(tmp_path):
    save(tmp_path, WIDE, ENV)
    assert restore_teacher(WIDE, tmp_path, ENV).weights.statistics is None
    save(tmp_path, WIDE, ENV, epoch=2, normalization={"rewards": jnp.ones(3)})
    assert restore_teacher(WIDE, tmp_path, ENV).weights.statistics is None


def test_a_recurrent_teacher_is_restored(tmp_path):
    network = models.actor_critic(actions=2, hidden=(4,), recurrent_size=4)
    weights = save(tmp_path, network, ENV)
    teacher = restore_teacher(network, tmp_path, ENV)
    assert jax.tree.structure(teacher.weights) == jax.tree.structure(weights)


def test_the_best_is_selected_by_a_score(tmp_path):
    best = save(tmp_path, WIDE, ENV, {"val/return": 9.0})
    save(tmp_path, WIDE, ENV, {"val/return": 3.0}, epoch=2)
    teacher = restore_teacher(WIDE, tmp_path, ENV, best="val/return", mode="max")
    for one, other in zip(
        jax.tree.leaves(teacher.weights.params), jax.tree.leaves(best.params), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("network", "space"),
    [(WIDE, {"action_space": Discrete(3)}), (GAUSSIAN, {}), (WIDE, {"action_space": Box((2,))})],
)
def test_other_actions_are_refused_before_anything_is_read(tmp_path, network, space):
    with pytest.raises(
        ValueError, match="the teacher must return .* for the actions of 'cartpole'"
    ):
        restore_teacher(network, tmp_path / "nowhere", ENV._replace(**space))


def test_other_observations_are_refused(tmp_path):
    save(tmp_path, WIDE, ENV)
    other = ENV._replace(name="other", observation_space=Box((6,)))
    with pytest.raises(
        ValueError,
        match=r"(?s)the teacher cannot be restored for 'other', .*shape=\(6,\)"
        r".*saved float32\[4, 8\], wanted float32\[6, 8\]",
    ):
        restore_teacher(WIDE, tmp_path, other)


def test_statistics_of_other_observations_are_refused(tmp_path):
    """The network alone would not notice: it treats each number in the same way."""
    seen = init_statistics(jnp.zeros((2, 2)))
    save(tmp_path, WIDE, ENV, normalization={"observations": seen})
    with pytest.raises(ValueError, match=r"observations/mean: saved float32\[2, 2\], wanted"):
        restore_teacher(WIDE, tmp_path, ENV)


def test_a_network_other_than_the_runs_is_refused(tmp_path):
    save(tmp_path, WIDE, ENV)
    other = models.actor_critic(actions=2, hidden=(8,))
    with pytest.raises(ValueError, match="(?s)cannot be restored .*saved float32.*wanted nothing"):
        restore_teacher(other, tmp_path, ENV)


def test_a_directory_without_a_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        restore_teacher(WIDE, tmp_path, ENV)


def test_kickstart_by_hand():
    """KL of (3/4, 1/4) against (1/2, 1/2), and of equals; values 2 and 0 apart."""
    teacher = {"logits": jnp.log(jnp.array([[3.0, 1.0], [1.0, 1.0]])), "value": jnp.array([1.0, 5])}
    student = {"logits": jnp.zeros((2, 2)), "value": jnp.array([3.0, 5.0])}
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    values = kickstart()(student, {"teacher": teacher})
    assert values.keys() == {"loss", "kl_to_teacher"}
    for value in values.values():
        np.testing.assert_allclose(value, [kl, 0.0], atol=1e-6)
    values = kickstart(value_coefficient=0.1)(student, {"teacher": teacher})
    np.testing.assert_allclose(values["loss"], [kl + 0.1 * 2, 0.0], atol=1e-6)
    np.testing.assert_allclose(values["kl_to_teacher"], [kl, 0.0], atol=1e-6)


def test_the_direction_is_from_the_teacher():
    """A student that rules out what the teacher does is far from it, and not the reverse."""
    broad = {"logits": jnp.zeros((1, 2)), "value": jnp.zeros(1)}
    narrow = {"logits": jnp.array([[20.0, 0.0]]), "value": jnp.zeros(1)}
    assert float(kickstart()(narrow, {"teacher": broad})["loss"][0]) > 9
    assert float(kickstart()(broad, {"teacher": narrow})["loss"][0]) < 0.7


def test_gaussian_policies_move_towards_their_teacher():
    teacher = {"mean": jnp.ones((1, 1)), "log_std": jnp.zeros((1, 1)), "value": jnp.zeros(1)}
    student = {**teacher, "mean": jnp.full((1, 1), -1.0)}
    loss = kickstart()
    np.testing.assert_allclose(loss(student, {"teacher": teacher})["loss"], [2.0], atol=1e-6)
    slope = jax.grad(lambda mean: loss({**student, "mean": mean}, {"teacher": teacher})["loss"][0])
    np.testing.assert_allclose(slope(student["mean"]), [[-2.0]], atol=1e-6)


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match=r"reads batch\['teacher'\].*there is: action, value"):
        kickstart()({}, {"action": 0, "value": 0})
    with pytest.raises(ValueError, match="must not be negative"):
        kickstart(value_coefficient=-1.0)
