"""Advantages and losses by hand."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainer.rl import GRPOConfig, grpo_loss
from trainer.rl.answering.grpo_loss import compute_group_advantages

pytestmark = pytest.mark.usefixtures("compiled_quickly")

# Two answers, of 2 tokens and of 1; ratios 2 and 0.5, and 4; what follows the second is not read.
OUTPUTS = {"log_prob": jnp.log(jnp.array([[0.5, 0.25], [0.8, jnp.nan]]))}
BATCH = {
    "log_prob": jnp.log(jnp.array([[0.25, 0.5], [0.2, 0.0]])),
    "reference": jnp.log(jnp.array([[0.5, 0.5], [0.4, 0.1]])),
    "lengths": jnp.array([2, 1]),
    "advantage": jnp.array([1.0, -2.0]),
}
# min(2, 1.2), min(0.5, 0.8); -2 * max(4, 1.2)
OBJECTIVE = np.array([[1.2, 0.5], [-8.0, 0.0]])
# r - 1 - log r for r = reference / policy: 1, 2, 0.5
KL = np.array([[0.0, 1 - np.log(2)], [0.5 - 1 + np.log(2), 0.0]])


def test_advantages_by_hand():
    reward = jnp.array([1.0, 2.0, 3.0, 0.1, 0.1, 0.1])
    plain = compute_group_advantages(reward, 3, normalize_std=False)
    chex.assert_trees_all_close(plain, jnp.array([-1.0, 0, 1, 0, 0, 0]))
    scaled = compute_group_advantages(10 * reward, 3)  # whose deviation is 10
    chex.assert_trees_all_close(scaled, jnp.array([-1.0, 0, 1, 0, 0, 0]), rtol=1e-5)
    assert scaled[3:].tolist() == [0.0] * 3  # exactly, although 0.1 has no exact mean


def _mean(values):
    """The mean of a loss's values, as the trainer takes it."""
    if isinstance(values, tuple):
        return float((values[0] * values[1]).sum() / values[1].sum())
    return float(values.mean())


@pytest.mark.parametrize(
    ("average", "weights"),
    [
        ("answer", [[1 / 4, 1 / 4], [1 / 2, 0]]),
        ("token", [[1 / 3, 1 / 3], [1 / 3, 0]]),
        ("constant", [[1 / 4, 1 / 4], [1 / 4, 0]]),
    ],
)
def test_the_losses_of_tokens_are_averaged_by_hand(average, weights):
    config = GRPOConfig(clip=0.2, kl_coefficient=0.5, average=average, length=2)
    values = grpo_loss(config)(OUTPUTS, BATCH)
    assert _mean(values["policy_loss"]) == pytest.approx(-(OBJECTIVE * weights).sum(), rel=1e-5)
    expected = ((-OBJECTIVE + 0.5 * KL) * weights).sum()
    assert _mean(values["loss"]) == pytest.approx(expected, rel=1e-5)
    assert _mean(values["kl"]) == pytest.approx(KL.sum() / 3, rel=1e-5)
    moved = (2 - 1 - np.log(2)) + (0.5 - 1 + np.log(2)) + (4 - 1 - np.log(4))
    assert _mean(values["approx_kl"]) == pytest.approx(moved / 3, rel=1e-5)
    assert _mean(values["clip_fraction"]) == pytest.approx(1 / 3)  # the 2; 0.5 and 4 still learn


def test_a_higher_clip_lets_rare_tokens_grow():
    loss = grpo_loss(GRPOConfig(clip=0.2, clip_high=1.5, kl_coefficient=0.0, length=2))
    values = loss(OUTPUTS, BATCH)
    assert _mean(values["clip_fraction"]) == 0.0
    assert values["policy_loss"][0] == pytest.approx(-(2 + 0.5) / 2)
    assert "kl" not in values


def test_the_gradient_is_finite_and_0_beyond_the_clip_and_the_answer():
    loss = grpo_loss(GRPOConfig(clip=0.2, kl_coefficient=0.0, average="token", length=2))

    def total(log_prob):
        values, weights = loss({"log_prob": log_prob}, BATCH)["loss"]
        return (values * weights).sum()

    gradient = jax.grad(total)(OUTPUTS["log_prob"])
    chex.assert_trees_all_close(gradient, jnp.array([[0.0, -0.5], [8.0, 0.0]]), rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"group_size": 1}, "group_size must be at least 2: an answer is compared .*; got 1"),
        ({"prompts": 0}, "prompts must be a whole number of at least 1; got 0"),
        ({"minibatches": 3}, r"64 answers \(8 prompts, 8 each\) do not make 3"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"top_p": 1.5}, r"top_p must be in \(0, 1\]"),
        ({"stop": [0]}, "stop must be a tuple of token ids"),
        ({"clip": 0.0}, "clip must be above 0; got 0"),
        ({"clip_high": -1.0}, "clip_high must be above 0, or None"),
        ({"kl_coefficient": -0.1}, "kl_coefficient must be 0 or more"),
        ({"average": "tokens"}, "average must be one of .*Did you mean 'token'"),
        ({"precision": "float16"}, "float16 needs a loss scale"),
    ],
)
def test_settings_out_of_range_are_refused(settings, said):
    with pytest.raises((TypeError, ValueError), match=said):
        GRPOConfig(**settings)
