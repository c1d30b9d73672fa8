"""Returns and advantages, against hand-worked numbers and a plain loop."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.rl.returns import Trajectory, compute_gae, compute_n_step_returns, compute_vtrace

pytestmark = pytest.mark.usefixtures("compiled_quickly")

# Four steps: the second ends an episode for good, the third cuts one off.
REWARDS = jnp.array([1.0, 2.0, 3.0, 4.0])
VALUES = jnp.array([10.0, 20.0, 30.0, 40.0])
NEXT = jnp.array([20.0, 99.0, 50.0, 60.0])
TERMINATED = jnp.array([False, True, False, False])
TRUNCATED = jnp.array([False, False, True, False])
NEVER = jnp.zeros(4, bool)
STEPS = Trajectory(REWARDS, VALUES, NEXT, TERMINATED, TRUNCATED)
WITHIN = STEPS._replace(terminated=NEVER, truncated=NEVER)
"""The same steps, all within one episode."""


def test_gae_by_hand():
    # Errors: 1 + 10 - 10, 2 - 20, 3 + 25 - 30, 4 + 30 - 40; only the first has one after it.
    got = compute_gae(STEPS, discount=0.5, gae_lambda=0.5)
    assert got.tolist() == [1.0 - 0.25 * 18.0, -18.0, -2.0, -6.0]


def test_gae_at_lambda_0_is_the_error_of_one_step():
    got = compute_gae(STEPS, discount=0.9, gae_lambda=0.0)
    wanted = REWARDS + 0.9 * jnp.array([20.0, 0.0, 50.0, 60.0]) - VALUES
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_gae_at_lambda_1_is_the_return_less_the_value():
    steps = WITHIN._replace(next_values=jnp.append(VALUES[1:], 7.0))
    got = compute_gae(steps, discount=0.5, gae_lambda=1.0)
    returns = np.array([1 + 2 / 2 + 3 / 4 + 4 / 8, 2 + 3 / 2 + 4 / 4, 3 + 4 / 2, 4])
    returns = returns + 7.0 * np.array([1 / 16, 1 / 8, 1 / 4, 1 / 2])
    np.testing.assert_allclose(got, returns - VALUES, rtol=1e-6)


@pytest.mark.parametrize(
    ("n", "wanted"),
    [
        (1, [1 + 10, 2, 3 + 25, 4 + 30]),
        (2, [1 + 1, 2, 3 + 25, 4 + 30]),
        (4, [1 + 1, 2, 3 + 25, 4 + 30]),
        (100, [1 + 1, 2, 3 + 25, 4 + 30]),
    ],
)
def test_n_steps_by_hand(n, wanted):
    assert compute_n_step_returns(STEPS, n=n, discount=0.5).tolist() == wanted


def test_n_steps_within_one_episode_by_hand():
    got = compute_n_step_returns(WITHIN, n=2, discount=0.5)
    assert got.tolist() == [1 + 2 / 2 + 99 / 4, 2 + 3 / 2 + 50 / 4, 3 + 4 / 2 + 60 / 4, 4 + 60 / 2]


TWO = Trajectory(REWARDS[:2], VALUES[:2], VALUES[1:3], NEVER[:2], NEVER[:2])


def test_vtrace_by_hand():
    # Errors within one episode: 1 + 10 - 10, 2 + 15 - 20; ratios 1/2 and 4, clipped to 2 and 1.5.
    ratios = jnp.log(jnp.array([0.5, 4.0]))
    got = compute_vtrace(TWO, ratios, discount=0.5, clip_rho=2.0, clip_c=1.5)
    np.testing.assert_allclose(got.targets, [10 + 0.5 * (1 - 0.5 * 6), 20 - 2 * 3], rtol=1e-6)
    np.testing.assert_allclose(got.advantages, [0.5 * (1 + 10 - 0.5 * 6 - 10), -6], rtol=1e-5)


def test_vtrace_clips_the_traces_apart_from_the_errors():
    def targets(clip_c):
        ratios = jnp.log(jnp.array([4.0, 1.0]))
        return compute_vtrace(TWO, ratios, discount=0.5, clip_rho=3.0, clip_c=clip_c).targets

    # Corrections: 3 * 1 + 0.5 * c * -3, and -3.
    np.testing.assert_allclose(targets(2.0), [10 + 3 - 3, 17], rtol=1e-6)
    np.testing.assert_allclose(targets(8.0), [10 + 3 - 6, 17], rtol=1e-6)


def test_vtrace_of_an_action_of_probability_0_is_finite():
    ratios = jnp.array([-jnp.inf, 200.0, 0.0, 0.0])
    got = compute_vtrace(STEPS, ratios, discount=0.5)
    assert np.isfinite(got.targets).all()
    assert got.targets[0] == VALUES[0]
    assert got.advantages[0] == 0


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_the_value_after_termination_is_not_used(bad):
    steps = STEPS._replace(next_values=NEXT.at[1].set(bad))
    for got in (
        compute_gae(steps, discount=0.5, gae_lambda=0.5),
        compute_n_step_returns(steps, n=3, discount=0.5),
        *compute_vtrace(steps, NEVER * 1.0, discount=0.5),
    ):
        assert np.isfinite(got).all()


UNLIKE = Trajectory(*[jnp.ones((4, 2))] * 5)._replace(values=VALUES)


@pytest.mark.parametrize(
    ("name", "estimate"),
    [
        ("compute_gae", lambda: compute_gae(UNLIKE, discount=0.5, gae_lambda=0.5)),
        ("compute_n_step_returns", lambda: compute_n_step_returns(UNLIKE, n=1, discount=0.5)),
        ("compute_vtrace", lambda: compute_vtrace(UNLIKE, REWARDS, discount=0.5)),
    ],
)
def test_arrays_of_other_shapes_are_refused(name, estimate):
    with pytest.raises(ValueError, match=rf"{name} needs arrays of one shape .*\(4, 2\), \(4,"):
        estimate()


def test_0_steps_are_refused():
    with pytest.raises(ValueError, match="n must be at least 1 step; got 0"):
        compute_n_step_returns(STEPS, n=0, discount=0.5)


@st.composite
def experiences(draw):
    """A trajectory `[time, 2]` of one shape, so that little is compiled, and log ratios."""
    seed = draw(st.integers(0, 2**32 - 1))
    ends = draw(st.floats(0, 0.6))
    random = np.random.default_rng(seed)
    shape = (7, 2)
    terminated, truncated = (random.random(shape) < ends for _ in range(2))
    rewards, values, other = (random.normal(size=shape) for _ in range(3))
    following = np.where(terminated | truncated, other, np.append(values[1:], other[-1:], axis=0))
    log_ratios = random.normal(size=shape)
    steps = [np.float32(x) for x in (rewards, values, following)]
    return Trajectory(*steps, terminated, truncated), np.float32(log_ratios)


numbers = st.floats(0, 1, width=32)
_gae = jax.jit(compute_gae)
_vtrace = jax.jit(compute_vtrace)
_n_step = jax.jit(compute_n_step_returns, static_argnames="n")


@given(experiences(), numbers, numbers)
def test_gae_is_what_a_plain_loop_gives(experience, discount, gae_lambda):
    rewards, values, following, terminated, truncated = experience[0]
    wanted = np.zeros_like(rewards)
    for env in range(2):
        for t in range(7):
            weight = 1.0
            for later in range(t, 7):
                after = 0.0 if terminated[later, env] else following[later, env]
                error = rewards[later, env] + discount * after - values[later, env]
                wanted[t, env] += weight * error
                weight *= discount * gae_lambda
                if terminated[later, env] or truncated[later, env]:
                    break
    got = _gae(experience[0], discount=discount, gae_lambda=gae_lambda)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


@given(experiences(), numbers, st.sampled_from([1, 2, 3, 7, 9]))
def test_n_steps_are_what_a_plain_loop_gives(experience, discount, n):
    rewards, _, following, terminated, truncated = experience[0]
    wanted = np.zeros_like(rewards)
    for env in range(2):
        for t in range(7):
            weight = 1.0
            for later in range(t, min(t + n, 7)):
                wanted[t, env] += weight * rewards[later, env]
                weight *= discount
                if terminated[later, env] or truncated[later, env]:
                    break
            if not terminated[later, env]:
                wanted[t, env] += weight * following[later, env]
    got = _n_step(experience[0], n=n, discount=discount)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


@given(experiences(), numbers, numbers)
def test_vtrace_is_what_a_plain_loop_gives(experience, discount, gae_lambda):
    steps, log_ratios = experience
    rewards, values, following, terminated, truncated = steps
    targets, advantages = np.array(values), np.zeros_like(values)
    for env in range(2):
        for t in range(7):
            weight = 1.0
            for later in range(t, 7):
                ratio = math.exp(log_ratios[later, env])
                after = 0.0 if terminated[later, env] else following[later, env]
                error = rewards[later, env] + discount * after - values[later, env]
                targets[t, env] += weight * min(1.2, ratio) * error
                weight *= discount * gae_lambda * min(0.8, ratio)
                if terminated[later, env] or truncated[later, env]:
                    break
    for env in range(2):
        for t in range(7):
            after = 0.0 if terminated[t, env] else following[t, env]
            if t < 6 and not (terminated[t, env] or truncated[t, env]):
                after = gae_lambda * targets[t + 1, env] + (1 - gae_lambda) * after
            advantages[t, env] = min(1.2, math.exp(log_ratios[t, env])) * (
                rewards[t, env] + discount * after - values[t, env]
            )
    got = _vtrace(
        steps, log_ratios, discount=discount, gae_lambda=gae_lambda, clip_rho=1.2, clip_c=0.8
    )
    np.testing.assert_allclose(got.targets, targets, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got.advantages, advantages, rtol=1e-4, atol=1e-4)


@given(experiences(), numbers, numbers)
def test_the_three_agree_where_the_policies_do(experience, discount, gae_lambda):
    steps, log_ratios = experience
    same = np.zeros_like(log_ratios)
    whole = _n_step(steps, n=7, discount=discount)
    lasting = _vtrace(steps, same, discount=discount)
    np.testing.assert_allclose(lasting.targets, whole, rtol=1e-4, atol=1e-4)
    advantages = _gae(steps, discount=discount, gae_lambda=gae_lambda)
    short = _vtrace(steps, same, discount=discount, gae_lambda=gae_lambda)
    np.testing.assert_allclose(short.advantages, advantages, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(short.targets, steps.values + advantages, rtol=1e-4, atol=1e-4)
