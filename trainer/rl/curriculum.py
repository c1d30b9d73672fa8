"""Lessons: one environment that draws its params for each episode from several."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trainer.checks.pytrees import list_differences
from trainer.checks.suggestions import suggest_and_list
from trainer.host.exception_notes import annotate_errors
from trainer.rl.environments.environment import Environment, TimeStep
from trainer.state import PyTree


class LessonState(NamedTuple):
    """State of an environment with lessons."""

    lesson: jax.Array
    """() int32: the episode's lesson, as an index into `Environment.lessons`."""
    state: PyTree
    """State of the wrapped environment."""


def lessons(
    env: Environment,
    params: Mapping[str, PyTree],
    *,
    weights: Mapping[str, float] | None = None,
) -> Environment:
    """Build an environment that draws a lesson for every episode.

    Its `reset` and `step` take the lessons' weights, float32 `[lessons]`, in place of params: a
    lesson is drawn in proportion to its weight, and never at weight 0. In training the weights are
    `state.carry["lessons"]`, which `hooks.adapt_curriculum` changes; an episode keeps its lesson to
    the end. Every step's `info["lesson"]` is the lesson's index, () int32.

    Args:
        env: the environment; wrappers go inside or around.
        params: the lessons by name, each with the structure, shapes and dtypes of `env.params`.
        weights: initial weights by name, 0 for those that are not named; None: all the same.

    Raises:
        ValueError: there is no lesson, a name is not usable, params have not the environment's
            structure or are outside its range, or weights do not fit. The error names the lesson.

    Source: S. Narvekar et al., Curriculum Learning for Reinforcement Learning Domains, 2020.

    >>> from trainer.rl.environments import cartpole
    >>> env = cartpole()
    >>> long = env.params.replace(pole_length=1.0)
    >>> both = lessons(env, {"short": env.params, "long": long}, weights={"long": 1.0})
    >>> both.lessons, both.params.tolist()
    (('short', 'long'), [0.0, 1.0])
    >>> state, observation = both.reset(jax.random.key(0), both.params)
    >>> int(state.lesson)
    1
    """
    _check_names(env, params)
    names, stacked = tuple(params), _stack_params(env, params)
    check = functools.partial(check_weights, names)
    initial = dict.fromkeys(names, 1.0) if weights is None else dict(weights)
    if unknown := [name for name in initial if name not in names]:
        raise ValueError(
            f"weights name {unknown}, which are no lessons{suggest_and_list(unknown[0], names)}"
        )
    first = np.array([initial.get(name, 0.0) for name in names], np.float32)
    check(first)

    def params_of(lesson: jax.Array) -> PyTree:
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[lesson], stacked)

    def reset(key: jax.Array, weights: PyTree) -> tuple[LessonState, PyTree]:
        draw, begin = jax.random.split(key)
        lesson = jax.random.categorical(draw, jnp.log(weights)).astype(jnp.int32)
        state, observation = env.reset(begin, params_of(lesson))
        return LessonState(lesson, state), observation

    def step(key: jax.Array, state: LessonState, action: jax.Array, weights: PyTree) -> TimeStep:
        after = env.step(key, state.state, action, params_of(state.lesson))
        info = {**after.info, "lesson": state.lesson}
        return after._replace(state=state._replace(state=after.state), info=info)

    draw = env.render

    def render(state: LessonState, weights: PyTree) -> jax.Array:
        assert draw is not None
        return draw(state.state, params_of(state.lesson))

    return env._replace(
        reset=reset,
        step=step,
        params=jnp.asarray(first / first.sum()),
        check=check,
        render=render if draw else None,
        lessons=names,
    )


def check_weights(names: Sequence[str], weights: Any) -> None:
    """Raise ValueError if weights of lessons, on the host, are such that none can be drawn.

    >>> check_weights(["easy", "hard"], [1.0, -1.0])
    Traceback (most recent call last):
        ...
    ValueError: the lessons easy, hard need a weight each, finite, not negative, and not all 0; got
    [1.0, -1.0]
    """
    array = np.asarray(weights, np.float32)
    fits = array.shape == (len(names),) and np.isfinite(array).all() and (array >= 0).all()
    if not (fits and array.sum() > 0):
        raise ValueError(
            f"the lessons {', '.join(names)} need a weight each, finite, not negative, and not all "
            f"0; got {array.tolist()}"
        )


def _check_names(env: Environment, params: Mapping[str, PyTree]) -> None:
    if env.lessons:
        raise ValueError(
            f"{env.name!r} has the lessons {', '.join(env.lessons)} already: name all of them at "
            "once, for the environment without lessons"
        )
    if not isinstance(params, Mapping) or not params:
        raise ValueError(
            f"lessons need at least one, in a dict of params by name; got {params!r:.100}"
        )
    if wrong := [name for name in params if not name or "/" in name]:
        raise ValueError(f"a lesson's name must be a word without '/', for metrics; got {wrong}")


def _stack_params(env: Environment, params: Mapping[str, PyTree]) -> PyTree:
    """Check the lessons, and stack their params as numpy arrays with an axis of lessons."""
    wanted = jax.tree.map(_to_array, env.params)
    checked = []
    for name, lesson in params.items():
        arrays = jax.tree.map(_to_array, lesson)
        if lines := list_differences(wanted, arrays):
            raise ValueError(
                f"lesson {name!r} must have the structure, shapes and dtypes of the params of "
                f"{env.name!r}:\n  " + "\n  ".join(lines)
            )
        with annotate_errors(f"in lesson {name!r}"):
            env.check(arrays)
        checked.append(arrays)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *checked)


def _to_array(leaf: Any) -> np.ndarray:
    """Convert a leaf to a numpy array; Python's numbers to 32 bits, also where JAX has 64."""
    dtype = {float: np.float32, int: np.int32}.get(type(leaf))
    return np.asarray(jnp.asarray(leaf, dtype))
