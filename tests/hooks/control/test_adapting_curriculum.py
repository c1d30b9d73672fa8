"""Drawing lessons by their returns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hooks
import models
import trainer
from hooks import testing
from hooks.control.adapting_curriculum import LessonWeighting
from trainer.rl import PPOConfig, lessons, ppo
from trainer.rl.environments import cartpole

pytestmark = pytest.mark.usefixtures("compiled_quickly")

LESSONS = ("short", "long")
STEPS = {"short": 3, "long": 40}
EASY = {"rollout/return/short": 2.0}


@pytest.fixture
def state():
    """A state with weights of two lessons."""
    carry = {"lessons": jnp.array([0.5, 0.5]), "other": jnp.ones(2)}
    return trainer.TrainState.create(params={}, rng=jax.random.key(0), carry=carry)


@pytest.fixture(scope="module")
def agent():
    """An agent with two lessons of CartPole, which end after at most 3 and 40 steps."""
    env = cartpole()
    params = {name: env.params.replace(max_steps=jnp.int32(n)) for name, n in STEPS.items()}
    network = models.actor_critic(actions=2, hidden=(4,))
    settings = {"envs": 4, "steps": 16, "epochs": 1, "minibatches": 1}
    return ppo(network, lessons(env, params), optax.sgd(1e-2), PPOConfig(**settings))


def take_turns(names):
    """A user's strategy: the next lesson after each update."""
    weights = lambda turn: np.eye(len(names))[turn["lesson"]]  # noqa: E731
    update = lambda turn, returns: {"lesson": (turn["lesson"] + 1) % len(names)}  # noqa: E731
    return LessonWeighting("take_turns", {"lesson": np.int64(0)}, update, weights)


def graduate_at_two(**settings):
    return hooks.adapt_curriculum(LESSONS, hooks.thresholds({"short": 2.0}, window=2, **settings))


def test_weights_are_set_in_the_carry_and_written_as_scores(state):
    hook, seen = hooks.adapt_curriculum(LESSONS, take_turns), []
    for _ in range(3):
        after = hook(state, EASY)
        state = after.replace(scores={})
        seen.append(after.carry["lessons"].tolist())
        assert list(after.scores.items()) == [
            ("curriculum/weight/short", seen[-1][0]),
            ("curriculum/weight/long", seen[-1][1]),
        ]
        assert after.carry["lessons"].dtype == jnp.float32
        assert after.carry["other"] is state.carry["other"]
    assert seen == [[0, 1], [1, 0], [0, 1]]


def test_lessons_without_an_ended_episode_are_not_updated(state):
    hook = graduate_at_two()
    once = hook(state, EASY)
    again = hook(once.replace(scores={}), {"rollout/episodes": 0.0})
    assert again.hook_state == once.hook_state
    assert again.carry is once.carry
    assert again.scores == once.scores  # plotted curves have no gaps
    not_finite = hook(once, {"rollout/return/short": float("nan")})
    assert not_finite.hook_state is once.hook_state


def test_weights_are_set_before_the_first_epoch(state):
    start = next(part for part in graduate_at_two().parts if part.at == "start")
    after = start(state, {})
    assert after.carry["lessons"].tolist() == [1.0, 0.0]
    assert start(after, {}) is after


def test_returns_can_be_read_under_another_prefix(state):
    strategy = hooks.thresholds({"short": 2.0}, window=1, graduated_weight=1.0)
    hook = hooks.adapt_curriculum(LESSONS, strategy, metric="val/return")
    assert hook(state, EASY).carry["lessons"].tolist() == [1.0, 0.0]
    assert hook(state, {"val/return/short": 2.0}).carry["lessons"].tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    "strategy", [hooks.learning_progress(), hooks.thresholds({"short": 1.0}), take_turns]
)
def test_it_keeps_the_laws(state, strategy):
    hook = hooks.adapt_curriculum(LESSONS, strategy)
    testing.check_hook(hook, state, {"rollout/return/short": 1.0, "rollout/return/long": 4.0})
    testing.check_hook(hook, state, EASY)


@pytest.mark.parametrize(
    ("strategy", "low"),
    [
        (hooks.learning_progress(fast=0.9, slow=0.1), 0.05),
        (hooks.thresholds({"short": 3.0}, window=2), 1 / 11),
    ],
)
def test_law_5_a_curriculum_resumes_bit_for_bit(agent, check_resumes, strategy, low):
    def make():
        return hooks.adapt_curriculum(LESSONS, strategy)

    start = agent.init(jax.random.key(0))
    whole = check_resumes(make, start, agent.rollout, epochs=3)
    # The short lesson always returns the same: the long one has all but the floor or small weight.
    np.testing.assert_allclose(whole.carry["lessons"], [low, 1 - low], rtol=1e-6)


def test_lessons_are_played_once_they_open(agent):
    state = agent.init(jax.random.key(1))
    _, history = trainer.fit(
        state, agent.rollout, epochs=6, hooks=graduate_at_two(graduated_weight=0.01)
    )
    weights = [epoch["curriculum/weight/long"] for epoch in history]
    assert weights == [0.0, *[np.float32(1 / 1.01)] * 5]  # a window of two epochs
    assert any("rollout/return/long" in epoch for epoch in history[3:])


def test_metrics_of_an_unknown_lesson_are_refused_before_training(agent):
    hook = hooks.adapt_curriculum(("short", "steep"), hooks.learning_progress())
    with pytest.raises(ValueError, match="reads 'rollout/return/steep', which nothing writes"):
        trainer.fit(agent.init(jax.random.key(0)), agent.rollout, epochs=1, hooks=hook)


@pytest.mark.parametrize(
    ("carry", "got"),
    [
        ({}, "none"),
        ({"lessons": jnp.ones(3)}, r"float32\[3\]"),
        ({"lessons": jnp.ones(2, jnp.int32)}, r"int32\[2\]"),
    ],
)
def test_a_state_without_weights_for_the_lessons_is_refused(state, carry, got):
    with pytest.raises(ValueError, match=rf"weights of 2 lessons, .*float32\[2\]; got {got}"):
        graduate_at_two()(state.replace(carry=carry), EASY)


@pytest.mark.parametrize("names", [(), ("short", "short")])
def test_missing_and_repeated_names_are_refused(names):
    with pytest.raises(ValueError, match="lessons' names, each once"):
        hooks.adapt_curriculum(names, hooks.learning_progress())


def test_a_strategy_that_does_not_fit_the_names_is_refused_when_the_hook_is_made():
    with pytest.raises(ValueError, match="'steep'"):
        hooks.adapt_curriculum(LESSONS, hooks.thresholds({"steep": 1.0}))


def test_weights_of_a_users_strategy_are_checked(state):
    broken = take_turns(LESSONS)._replace(weights=lambda turn: np.zeros(2))
    with pytest.raises(ValueError, match="short, long need a weight each"):
        hooks.adapt_curriculum(LESSONS, lambda names: broken)(state, EASY)


def test_every_member_of_a_population_has_its_own_curriculum(state):
    hook = hooks.each(hooks.adapt_curriculum(LESSONS, hooks.thresholds({"short": 2.0}, window=1)))
    both = trainer.stack_states([state, state.replace(rng=jax.random.key(1))])
    values = trainer.Members(np.array([2.0, 1.0]), np.array([True, True]))
    after = testing.check_hook(hook, both, {"rollout/return/short": values})
    np.testing.assert_allclose(after.carry["lessons"], [[1 / 11, 10 / 11], [1, 0]], rtol=1e-6)
