"""Distributions of actions, by hand and against closed forms."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainer.rl import distributions

pytestmark = pytest.mark.usefixtures("compiled_quickly")

CATEGORICAL = {"logits": jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]))}
GAUSSIAN = {"mean": jnp.array([[0.0, 1.0]]), "log_std": jnp.log(jnp.array([[1.0, 2.0]]))}


def test_probabilities_by_hand():
    logs = distributions.log_prob(CATEGORICAL, jnp.array([0, 1]))
    chex.assert_trees_all_close(jnp.exp(logs), jnp.array([0.5, 0.8]), rtol=1e-6)
    density = 1 / math.sqrt(2 * math.pi) * (1 / (2 * math.sqrt(2 * math.pi))) * math.exp(-0.5)
    log = distributions.log_prob(GAUSSIAN, jnp.array([[1.0, 1.0]]))
    chex.assert_trees_all_close(jnp.exp(log), jnp.array([density]), rtol=1e-6)


def test_entropies_by_hand():
    chex.assert_trees_all_close(
        distributions.entropy(CATEGORICAL)[0], jnp.float32(1.5 * math.log(2)), rtol=1e-6
    )
    expected = math.log(2 * math.pi * math.e) + math.log(2)
    chex.assert_trees_all_close(distributions.entropy(GAUSSIAN), jnp.array([expected]), rtol=1e-6)


@pytest.mark.parametrize("outputs", [CATEGORICAL, GAUSSIAN])
def test_samples_follow_the_probabilities(outputs):
    keys = jax.random.split(jax.random.key(0), 20_000)
    drawn = jax.vmap(lambda key: distributions.sample(outputs, key))(keys)
    entropy = -jnp.mean(jax.vmap(lambda x: distributions.log_prob(outputs, x))(drawn), axis=0)
    np.testing.assert_allclose(entropy, distributions.entropy(outputs), rtol=0.02)
    assert drawn.dtype == distributions.mode(outputs).dtype
    assert drawn.shape[1:] == distributions.mode(outputs).shape


def test_a_masked_action_has_no_influence():
    allowed = jnp.array([True, False, True])

    def masked(logits):
        return {"logits": jnp.where(allowed, logits, -jnp.inf)}

    logits, others = jnp.array([0.3, 0.5, -0.2]), jnp.array([0.1, 0.7, 0.4])
    fewer = {"logits": logits[allowed]}, {"logits": others[allowed]}
    found = distributions.entropy(masked(logits)), distributions.kl(masked(logits), masked(others))
    expected = distributions.entropy(fewer[0]), distributions.kl(*fewer)
    chex.assert_trees_all_close(found, expected, rtol=1e-6)
    for measure in (distributions.entropy, lambda o: distributions.kl(o, masked(others))):
        gradient = jax.grad(lambda x, measure=measure: measure(masked(x)))(logits)
        assert gradient[1] == 0
        assert jnp.isfinite(gradient).all()


def test_the_mode_is_the_likeliest():
    assert distributions.mode(CATEGORICAL).tolist() == [0, 1]
    chex.assert_trees_all_equal(distributions.mode(GAUSSIAN), GAUSSIAN["mean"])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (CATEGORICAL, {"logits": jnp.zeros((2, 3))}),
        (GAUSSIAN, {"mean": jnp.ones((1, 2)), "log_std": jnp.zeros((1, 2))}),
    ],
)
def test_the_divergence_is_the_mean_log_ratio(one, other):
    keys = jax.random.split(jax.random.key(1), 40_000)
    drawn = jax.vmap(lambda key: distributions.sample(one, key))(keys)

    def ratio(x):
        return distributions.log_prob(one, x) - distributions.log_prob(other, x)

    found = jnp.mean(jax.vmap(ratio)(drawn), axis=0)
    np.testing.assert_allclose(found, distributions.kl(one, other), rtol=0.03)
    chex.assert_trees_all_close(distributions.kl(one, one), jnp.zeros(len(found)), atol=1e-6)
