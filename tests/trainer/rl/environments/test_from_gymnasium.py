"""Environments of gymnasium: several at once, with automatic resets."""

from types import SimpleNamespace

import numpy as np
import pytest

from trainer.rl.environments import Box, Discrete, from_gymnasium

gymnasium = pytest.importorskip("gymnasium")
spaces = gymnasium.spaces

ANY = spaces.Box(-np.inf, np.inf, (1,), np.float64)


class Counting(gymnasium.Env):
    """Counts by its actions from a random start; ends at given counts."""

    def __init__(self, terminates=99.0, limit=99, actions=None, observations=ANY):
        self.action_space = actions or spaces.Discrete(3)
        self.observation_space = observations
        self.terminates, self.limit = terminates, limit
        self.given, self.closed, self.seeds = [], 0, []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.count, self.elapsed = float(self.np_random.random()), 0
        return self._seen(), {}

    def step(self, action):
        self.given.append(action)
        self.count += float(np.sum(action))
        self.elapsed += 1
        over, cut_off = self.count >= self.terminates, self.elapsed >= self.limit
        return self._seen(), self.count, over, cut_off, {}

    def close(self):
        self.closed += 1

    def _seen(self):
        return np.array([self.count])


SAME = Counting()


def made(*settings):
    """Make environments, each with its own settings."""
    left = [Counting(**one) for one in settings]
    members = list(left)
    return from_gymnasium(lambda: left.pop(0), len(members), seed=3), members


def test_resets_are_seeded_by_seed_number_and_index():
    (first, _), (second, _) = made({}, {}), made({}, {})
    begun = first.reset()
    np.testing.assert_array_equal(begun, second.reset())
    assert begun.shape == (2, 1)
    assert begun.dtype == np.float32
    assert begun[0] != begun[1]
    assert (first.reset(1) != begun).all()


def test_a_new_episode_begins_in_the_step_that_ends_one():
    envs, members = made({"terminates": 2.0}, {"limit": 1}, {"terminates": 2.0, "limit": 1}, {})
    begun = envs.reset()
    step = envs.step(np.full(4, 2))
    assert step.terminated.tolist() == [True, False, True, False]
    assert step.truncated.tolist() == [False, True, False, False]
    np.testing.assert_allclose(step.final_observation, begun + 2)
    np.testing.assert_allclose(step.reward, begun[:, 0] + 2)
    assert (step.observation[:3] < 1).all()
    assert step.observation[3] == step.final_observation[3]
    assert [member.seeds[1:] for member in members] == [[None], [None], [None], []]


def test_cartpole_is_that_of_gymnasium():
    with from_gymnasium("CartPole-v1", 1, seed=5) as envs:
        assert envs.name == "CartPole-v1"
        assert envs.action_space == Discrete(2)
        assert envs.observation_space.shape == (4,)
        theirs = gymnasium.make("CartPole-v1")
        seed = np.random.SeedSequence((5, 0)).generate_state(1)[0]
        np.testing.assert_array_equal(envs.reset()[0], theirs.reset(seed=int(seed))[0])
        for _ in range(12):
            observation, reward, over, cut_off, _ = theirs.step(1)
            step = envs.step(np.array([1]))
            np.testing.assert_array_equal(step.final_observation[0], observation)
            got = step.reward[0], step.terminated[0], step.truncated[0]
            assert got == (reward, over, cut_off)
            if over:
                break
        assert over
        theirs.close()


class Nested(Counting):
    """Has several observations, one of them counted from 5."""

    def _seen(self):
        return {"what": 6, "where": {"x": np.float64(0.5), "y": np.array([1.0, 2.0])}}


def test_several_spaces_become_a_dict_named_by_paths_in_32_bits():
    where = spaces.Dict(
        {"x": spaces.Box(0, 1, (), np.float64), "y": spaces.Box(0, 9, (2,), np.float32)}
    )
    seen = spaces.Dict({"what": spaces.Discrete(4, start=5), "where": where})
    envs = from_gymnasium(lambda: Nested(observations=seen), 2)
    assert envs.observation_space == {
        "what": Discrete(4),
        "where/x": Box((), 0.0, 1.0),
        "where/y": Box((2,), 0.0, 9.0),
    }
    observation = envs.reset()
    assert {name: str(x.dtype) for name, x in observation.items()} == {
        "what": "int32",
        "where/x": "float32",
        "where/y": "float32",
    }
    assert observation["what"].tolist() == [1, 1]
    assert observation["where/y"].tolist() == [[1.0, 2.0], [1.0, 2.0]]


def test_actions_are_counted_as_the_environment_does():
    envs, (one, other) = made(*[{"actions": spaces.Discrete(3, start=7)}] * 2)
    envs.reset()
    envs.step(np.array([0, 2], np.int32))
    assert (one.given, other.given) == ([7], [9])
    envs, (one,) = made({"actions": spaces.Box(-2, 2, (2,))})
    assert envs.action_space == Box((2,), -2.0, 2.0)
    envs.reset()
    envs.step(np.array([[0.5, -0.5]], np.float32))
    np.testing.assert_array_equal(one.given[0], [0.5, -0.5])


def test_a_failure_names_its_environment():
    class Failing(Counting):
        def step(self, action):
            raise OSError("lost")

    left = [Counting(), Failing()]
    envs = from_gymnasium(lambda: left.pop(0), 2)
    envs.reset()
    with pytest.raises(OSError, match="lost") as caught:
        envs.step(np.zeros(2, np.int32))
    assert caught.value.__notes__ == ["in environment 1 of 2 ('Counting')"]


def test_it_closes_once_and_refuses_steps_afterwards():
    envs, members = made({}, {})
    with envs:
        envs.reset()
    envs.close()
    assert [member.closed for member in members] == [1, 1]
    with pytest.raises(ValueError, match="'Counting' are closed"):
        envs.reset()


def test_environments_are_closed_if_another_is_refused():
    members = [
        Counting(actions=spaces.MultiDiscrete([2, 3])),
        Counting(actions=spaces.MultiDiscrete([2, 3])),
    ]
    left = list(members)
    with pytest.raises(ValueError, match="actions of 'Counting' must be one category"):
        from_gymnasium(lambda: left.pop(0), 2)
    assert [member.closed for member in members] == [1, 1]


@pytest.mark.parametrize(
    ("make", "count", "error", "message"),
    [
        (Counting, 0, ValueError, "at least 1 environment; got 0"),
        (lambda: SAME, 2, TypeError, "a new environment at every call"),
        (lambda: 3, 1, TypeError, "it returned a int"),
        (SAME, 1, TypeError, "it is a Counting"),
        (  # as environments of gymnax, which have no state
            lambda: SimpleNamespace(observation_space=lambda params: None),
            1,
            TypeError,
            "it returned a SimpleNamespace",
        ),
        (
            lambda: gymnasium.make_vec("CartPole-v1", num_envs=2),
            1,
            TypeError,
            "not several at once; it returned a CartPoleVectorEnv",
        ),
        (
            lambda: Counting(observations=spaces.Text(5)),
            1,
            ValueError,
            "arrays of a fixed shape, or several by name; got Text",
        ),
    ],
)
def test_functions_that_make_no_environments_are_refused(make, count, error, message):
    with pytest.raises(error, match=message):
        from_gymnasium(make, count)


def test_all_environments_must_have_the_same_spaces():
    with pytest.raises(ValueError, match="environment 1 of 'Counting' .* spaces of the first"):
        made({}, {"actions": spaces.Discrete(5)})


def test_it_has_no_params_and_a_fixed_count():
    envs, _ = made({}, {})
    envs.check(envs.params)
    envs.check_count(2)
    with pytest.raises(ValueError, match="takes no params; got 3"):
        envs.check(3)
    with pytest.raises(ValueError, match="set envs=2"):
        envs.check_count(8)
