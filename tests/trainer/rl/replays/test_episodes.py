"""Episodes of a state's policy, worked out by hand."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import trainer
from trainer.rl.curriculum import lessons
from trainer.rl.environments import Box, Discrete, Environment, TimeStep, auto_reset
from trainer.rl.normalization import RunningStatistics
from trainer.rl.replays.episodes import make_episode_runner

pytestmark = pytest.mark.usefixtures("compiled_quickly")


def state_of(params, **carry):
    return trainer.TrainState.create(params=params, rng=jax.random.key(9), carry=carry)


def stopping(at):
    """A policy that does 1 if its observation is at least a number."""

    def apply(params, model_state, x, *, key, train):
        logits = jnp.stack([jnp.full(len(x), at + params["w"]), x[:, 0]], axis=-1)
        return {"logits": 100 * logits, "value": x[:, 0]}, model_state

    return SimpleNamespace(init=lambda key, x: ({"w": jnp.zeros(())}, {}), apply=apply)


def counting_itself(at):
    """A recurrent policy that counts its steps and does 1 at one of them."""

    def apply(params, model_state, inputs, *, key, train):
        seen = jnp.where(inputs["first"][:, None], 0.0, inputs["recurrent"])
        logits = jnp.concatenate([jnp.full_like(seen, at - 0.5), seen], axis=-1)
        outputs = {"logits": 100 * logits, "value": seen[:, 0], "recurrent": seen + 1}
        return outputs, model_state

    return SimpleNamespace(
        init=lambda key, x: ({"w": jnp.zeros(())}, {}),
        apply=apply,
        init_recurrent_state=lambda batch: jnp.full((batch, 1), 7.0),
    )


def test_a_replay_has_the_actions_and_their_results(counts):
    state = state_of({"w": -0.5}).replace(epoch=jnp.int32(4), step=jnp.int32(40))
    replay = make_episode_runner(stopping(2), counts(limit=9))(state, 3, 1)
    assert (replay.environment, replay.lesson, replay.seed, replay.number) == (
        "counting",
        None,
        3,
        1,
    )
    assert (replay.epoch, replay.step, replay.greedy) == (4, 40, True)
    assert replay.actions.tolist() == [0, 0, 1]
    assert replay.rewards.tolist() == [1, 2, 3]
    assert (replay.length, replay.episode_return) == (3, 6.0)
    assert (replay.terminated, replay.truncated) == (True, False)
    assert [leaf.tolist() for leaf in replay.params] == [[9]]


@pytest.mark.parametrize(
    ("limit", "max_steps", "length", "truncated"), [(3, 9, 3, True), (9, 4, 4, False)]
)
def test_an_episode_is_cut_off_by_the_environment_or_by_max_steps(
    counts, always, limit, max_steps, length, truncated
):
    replay = make_episode_runner(always(0), counts(limit), max_steps=max_steps)(
        state_of({"w": 0.0}), 0, 0
    )
    assert (replay.length, replay.terminated, replay.truncated) == (length, False, truncated)


def test_a_recurrent_policy_begins_with_its_initial_state(counts):
    replay = make_episode_runner(counting_itself(at=2), counts(limit=9))(state_of({"w": 0.0}), 0, 0)
    assert replay.actions.tolist() == [0, 0, 1]


def test_observations_are_normalized_as_in_training(counts):
    """Around a mean of 4, a count of 5 is the first above 0.5, with a deviation of 1."""
    seen = RunningStatistics(weight=jnp.float32(10), mean=jnp.full(1, 4.0), m2=jnp.full(1, 10.0))
    state = state_of({"w": 0.0}, normalization={"observations": seen})
    replay = make_episode_runner(stopping(0.5), counts(limit=9))(state, 0, 0)
    assert replay.actions.tolist() == [0, 0, 0, 0, 0, 1]


def test_a_lesson_is_fixed_or_drawn(counts, always):
    env = lessons(counts(), {"short": jnp.int32(2), "long": jnp.int32(5)})
    state = state_of({"w": 0.0})
    for name, length in (("short", 2), ("long", 5)):
        run = make_episode_runner(always(0), env, lesson=name)
        found = [run(state, 0, number) for number in range(3)]
        assert {(one.lesson, one.length) for one in found} == {(name, length)}
    run = make_episode_runner(always(0), env)
    drawn = {(one.lesson, one.length) for one in (run(state, 0, n) for n in range(8))}
    assert drawn == {("short", 2), ("long", 5)}


def coin():
    """An environment whose episodes differ by their key alone, and which takes 20 steps."""

    def reset(key, params):
        number = jax.random.uniform(key)
        return (number, jnp.int32(0)), number[None]

    def step(key, state, action, params):
        after = jax.random.uniform(key), state[1] + 1
        return TimeStep(after, after[0][None], after[0], jnp.bool_(False), after[1] >= 20)

    return Environment("coin", reset, step, Box((1,)), Discrete(2), ())


def test_only_seed_and_number_determine_the_episode(always):
    run = make_episode_runner(stopping(0.5), coin(), greedy=False)
    state = state_of({"w": 0.0})
    first, again = run(state, 1, 0), run(state.replace(rng=jax.random.key(5)), 1, 0)
    np.testing.assert_array_equal(first.rewards, again.rewards)
    np.testing.assert_array_equal(first.actions, again.actions)
    assert first.checksum == again.checksum
    assert len({run(state, seed, n).checksum for seed in (1, 2) for n in (0, 1)}) == 4


def test_actions_are_sampled_unless_it_is_greedy(counts):
    def unsure(params, model_state, x, *, key, train):
        return {"logits": jnp.array([[0.1, 0.0]] * len(x)), "value": x[:, 0]}, model_state

    network = SimpleNamespace(init=lambda key, x: ({}, {}), apply=unsure)
    state = state_of({})
    assert make_episode_runner(network, counts(6))(state, 0, 0).actions.tolist() == [0] * 6
    run = make_episode_runner(network, counts(6), greedy=False)
    assert len({run(state, 0, number).length for number in range(10)}) > 2


def test_continuous_actions_are_recorded_as_clipped():
    def apply(params, model_state, x, *, key, train):
        mean = jnp.stack([x[:, 0] + 0.1, x[:, 0] - 9], axis=-1)
        return {"mean": mean, "log_std": 0 * mean, "value": x[:, 0]}, model_state

    def step(key, state, action, params):
        state = state + action[0]
        over = jnp.bool_(False)
        return TimeStep(state, state[None], action[1], over, over)

    env = Environment(
        "slide",
        lambda key, params: (jnp.float32(0), jnp.zeros(1)),
        step,
        Box((1,)),
        Box((2,), low=-1, high=1),
        (),
    )
    network = SimpleNamespace(init=lambda key, x: ({}, {}), apply=apply)
    replay = make_episode_runner(network, env, max_steps=3)(state_of({}), 0, 0)
    assert replay.actions.dtype == np.float32
    np.testing.assert_allclose(replay.actions, [[0.1, -1], [0.2, -1], [0.4, -1]], rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"max_steps": 0}, "max_steps must be a whole number of at least 1; got 0"),
        ({"lesson": "hard"}, r"'counting' has no lesson 'hard' \(there is: none"),
    ],
)
def test_settings_that_cannot_run_are_refused(counts, always, change, said):
    with pytest.raises(ValueError, match=said):
        make_episode_runner(always(0), counts(), **change)


def test_unsuitable_environments_and_policies_are_refused(counts, always):
    with pytest.raises(ValueError, match="without auto_reset"):
        make_episode_runner(always(0), auto_reset(counts()))
    with pytest.raises(TypeError, match="needs an Environment of pure functions"):
        make_episode_runner(always(0), object())
    with pytest.raises(ValueError, match="must return logits"):
        make_episode_runner(always(0, actions=3), counts())


def test_a_reward_that_is_not_finite_is_named_with_its_step(counts, always):
    env = counts(limit=5, reward=lambda state: jnp.where(state == 3, jnp.nan, 1.0))
    with pytest.raises(ValueError, match="reward at step 2 of episode 4 in 'counting'.* is nan"):
        make_episode_runner(always(0), env)(state_of({"w": 0.0}), 0, 4)


def test_it_is_compiled_once(counts, always):
    traced = []

    def reward(state):
        traced.append(1)
        return state.astype(jnp.float32)

    run = make_episode_runner(always(0), counts(reward=reward))
    run(state_of({"w": 0.0}), 0, 0)
    before = len(traced)
    run(state_of({"w": 1.0}), 5, 2)
    assert len(traced) == before
