"""Lessons: which are drawn, with which params, and what is refused."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainer.rl import lessons
from trainer.rl.curriculum import check_weights
from trainer.rl.environments import (
    GridworldParams,
    auto_reset,
    cartpole,
    gridworld,
    gridworld_levels,
    record_episodes,
)

pytestmark = pytest.mark.usefixtures("compiled_quickly")

DRAWS = 2000


@pytest.fixture
def course(counts):
    """Three lessons of counting: to 1, to 2, to 5."""
    return lessons(counts(), {name: jnp.int32(n) for name, n in (("a", 1), ("b", 2), ("c", 5))})


def _count_draws(env, weights):
    keys = jax.random.split(jax.random.key(0), DRAWS)
    state, _ = jax.jit(jax.vmap(env.reset, (0, None)))(keys, jnp.array(weights, jnp.float32))
    return np.bincount(state.lesson, minlength=len(env.lessons))


def test_lessons_are_drawn_in_proportion_to_their_weights(course):
    assert course.lessons == ("a", "b", "c")
    np.testing.assert_array_equal(course.params, np.full(3, 1 / 3, np.float32))
    counts = _count_draws(course, [1.0, 2.0, 5.0])  # the sum need not be 1
    assert abs(counts - DRAWS * np.array([1, 2, 5]) / 8).max() < 5 * np.sqrt(DRAWS / 4)


@pytest.mark.parametrize("weights", [[0, 1, 0], [0, 0, 1e-6], [1e-30, 0, 0]])
def test_a_weight_of_0_is_never_count_draws(course, weights):
    assert (_count_draws(course, weights) == DRAWS * (np.array(weights) > 0)).all()


def test_an_episode_keeps_its_lesson(course):
    env = auto_reset(record_episodes(course))
    state, _ = env.reset(jax.random.key(0), jnp.array([0.0, 1.0, 0.0]))
    reported = []
    step = jax.jit(env.step)
    for number in range(4):  # the weights change at once; b ends after its 2 steps
        after = step(jax.random.key(number), state, jnp.int32(0), jnp.array([1.0, 0.0, 0.0]))
        state = after.state
        reported.append((int(after.info["lesson"]), bool(after.truncated)))
    assert reported == [(1, False), (1, True), (0, True), (0, True)]


def test_a_lesson_is_the_environment_with_its_params():
    levels = dict(list(gridworld_levels().items())[:2])
    env, names = gridworld(), list(levels)
    course = lessons(env, levels)
    plain, mine = [(jax.jit(e.reset), jax.jit(e.step)) for e in (env, course)]
    for place, name in enumerate(names):
        key, weights = jax.random.key(place), jax.nn.one_hot(place, len(names))
        state, seen = mine[0](key, weights)
        inner, observation = plain[0](jax.random.split(key)[1], levels[name])
        chex.assert_trees_all_equal((state.state, seen), (inner, observation))
        after = mine[1](key, state, jnp.int32(2), weights)
        wanted = plain[1](key, inner, jnp.int32(2), levels[name])
        assert int(after.info["lesson"]) == place
        after = after._replace(state=after.state.state, info=wanted.info)
        chex.assert_trees_all_equal(after, wanted)
    drawn = course.render(state, weights)
    chex.assert_trees_all_equal(drawn, env.render(inner, levels[names[-1]]))


def test_initial_weights_are_set_by_name(counts):
    both = {"a": jnp.int32(1), "b": jnp.int32(2)}
    env = lessons(counts(), both, weights={"b": 3})
    assert env.params.tolist() == [0.0, 1.0]
    assert env.params.dtype == jnp.float32
    with pytest.raises(ValueError, match=r"name \['c'\], which are no lessons .there is: a, b"):
        lessons(counts(), both, weights={"c": 1.0})
    with pytest.raises(ValueError, match=r"a, b need a weight each.*got \[0.0, 0.0\]"):
        lessons(counts(), both, weights={})


@pytest.mark.parametrize("weights", [[1, 1], [[1, 1, 1]], [1, -1, 1], [0, 0, 0], [1, np.nan, 1], 1])
def test_weights_that_do_not_fit_are_refused(course, weights):
    with pytest.raises(ValueError, match="the lessons a, b, c need a weight each"):
        course.check(weights)
    check_weights(("a", "b", "c"), [0, 0.5, 2])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"gravity": jnp.ones(2)}, r"gravity: float32\[\] became float32\[2\]"),
        ({"max_steps": jnp.float32(5)}, r"max_steps: int32\[\] became float32\[\]"),
        ({"max_steps": None}, r"max_steps: int32\[\] is missing"),
    ],
)
def test_a_lesson_of_another_structure_is_refused_by_name(wrong, said):
    env = cartpole()
    with pytest.raises(ValueError, match="lesson 'odd' must have .*params of 'cartpole'") as error:
        lessons(env, {"usual": env.params, "odd": env.params.replace(**wrong)})
    assert error.match(said)


def test_a_lesson_of_another_environment_is_refused():
    with pytest.raises(ValueError, match="lesson 'odd' must have the structure"):
        lessons(cartpole(), {"odd": gridworld().params})


def test_python_numbers_are_accepted():
    env = cartpole()
    course = lessons(env, {"a": env.params.replace(gravity=5.0, max_steps=7)})
    assert course.lessons == ("a",)


def test_a_lesson_out_of_range_is_refused_by_name():
    env, levels = gridworld(), gridworld_levels()
    easy = next(iter(levels.values()))
    assert isinstance(easy, GridworldParams)
    with pytest.raises(ValueError, match="`max_steps` must be") as error:
        lessons(env, {"easy": easy, "endless": easy.replace(max_steps=jnp.int32(-1))})
    assert error.value.__notes__ == ["in lesson 'endless'"]


@pytest.mark.parametrize(
    ("names", "said"), [([], "at least one"), (["a/b"], "a word without"), ([""], "a word without")]
)
def test_unusable_names_are_refused(counts, names, said):
    with pytest.raises(ValueError, match=said):
        lessons(counts(), {name: jnp.int32(1) for name in names})


def test_lessons_without_names_are_refused(counts):
    with pytest.raises(ValueError, match=r"in a dict of params by name; got \[1, 2\]"):
        lessons(counts(), [1, 2])


def test_lessons_within_lessons_are_refused(course):
    with pytest.raises(ValueError, match="has the lessons a, b, c already"):
        lessons(course, {"again": course.params})
