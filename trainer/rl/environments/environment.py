"""The contract of environments: pure functions over a state, and the spaces of their arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from trainer.checks.pytrees import format_path
from trainer.state import PyTree


@dataclasses.dataclass(frozen=True)
class Discrete:
    """Whole numbers from 0 to `n - 1`, int32 `()`."""

    n: int
    shape: ClassVar[tuple[int, ...]] = ()
    dtype: ClassVar[Any] = jnp.dtype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class Box:
    """Arrays of one shape, with the same two bounds for all entries."""

    shape: tuple[int, ...]
    low: float = -float("inf")
    high: float = float("inf")
    dtype: Any = dataclasses.field(default_factory=lambda: jnp.dtype(jnp.float32))


Space = Discrete | Box | Mapping[str, "Discrete | Box"]
"""Space of observations: one array, or several by name. Actions are a `Discrete` or a `Box`."""


class TimeStep(NamedTuple):
    """The result of an action."""

    state: PyTree
    """State of the environment."""
    observation: PyTree
    """An element of the observation space."""
    reward: jax.Array
    """() float32."""
    terminated: jax.Array
    """() bool: the episode ended; no rewards would follow."""
    truncated: jax.Array
    """() bool: the episode was cut off, such as by a time limit; rewards would have followed."""
    info: Mapping[str, jax.Array] = {}
    """Added by wrappers: `episode_return`, `episode_length`, `lesson`, `final_observation`."""


class Environment(NamedTuple):
    """One environment as pure functions, without a batch axis; `vmap` makes many.

    A lesson is data: `params`, a pytree of arrays, is an argument of every call, so a change of
    lesson compiles nothing.
    """

    name: str
    reset: Callable[[jax.Array, PyTree], tuple[PyTree, PyTree]]
    """`(key, params) -> (state, observation)`: begin an episode; jittable."""
    step: Callable[[jax.Array, PyTree, jax.Array, PyTree], TimeStep]
    """`(key, state, action, params) -> TimeStep`; jittable. It does not reset by itself."""
    observation_space: Space
    action_space: Discrete | Box
    params: PyTree
    """The default params."""
    check: Callable[[PyTree], None] = lambda params: None
    """`(params)`: raises ValueError if they are out of range; on the host."""
    render: Callable[[PyTree, PyTree], jax.Array] | None = None
    """`(state, params) -> uint8 [height, width, 3]`, jittable; None if it cannot be drawn."""
    lessons: tuple[str, ...] = ()
    """Names of its lessons, see `trainer.rl.curriculum`."""


def check_contract(env: Environment) -> None:
    """Check, without computing anything, that an environment returns what it declares.

    Only the flags' dtypes are checked: an integer may stand for a float.

    Raises:
        TypeError: its `step` returns no `TimeStep`, or a flag is no bool.
        ValueError: an observation is not in its space, a step changes the shape of the state, or a
            reward or a flag is no scalar.

    >>> from trainer.rl.environments import cartpole
    >>> check_contract(cartpole()._replace(observation_space=Box((3,))))
    Traceback (most recent call last):
        ...
    ValueError: environment 'cartpole': the observation of its reset must be of shape [3]; got [4]
    """
    state, observation, step = infer_first_step(env, env.params)
    if not isinstance(step, TimeStep):
        raise TypeError(
            f"environment {env.name!r}: its step must return a trainer.rl.environments.TimeStep; "
            f"got a {type(step).__name__}"
        )
    declared, scalar = example(env.observation_space), jnp.zeros(())
    for what, wanted, got in (
        ("observation of its reset", declared, observation),
        ("observation of its step", declared, step.observation),
        ("state after its step", state, step.state),
        ("reward", scalar, step.reward),
        ("terminated", scalar, step.terminated),
        ("truncated", scalar, step.truncated),
    ):
        if (needed := _shapes(wanted)) != (given := _shapes(got)):
            raise ValueError(
                f"environment {env.name!r}: the {what} must be of shape {needed}; got {given}"
            )
    for what, flag in (("terminated", step.terminated), ("truncated", step.truncated)):
        if flag.dtype != bool:
            raise TypeError(f"environment {env.name!r}: {what} must be a bool; got {flag.dtype}")


def infer_first_step(env: Environment, params: PyTree) -> tuple[PyTree, PyTree, TimeStep]:
    """Return the shapes and dtypes of (state, observation, the first step), computing nothing."""
    key, action = jax.random.key(0), example(env.action_space)
    state, observation = jax.eval_shape(lambda key: env.reset(key, params), key)
    step = jax.eval_shape(lambda *x: env.step(x[0], x[1], x[2], params), key, state, action)
    return state, observation, step


def _shapes(tree: PyTree) -> Any:
    """Return the shape of an array, or those of several by path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    shapes = {format_path(path): list(jnp.shape(leaf)) for path, leaf in leaves}
    return shapes[""] if list(shapes) == [""] else shapes


def example(space: Space, *batch: int) -> PyTree:
    """Return zeros of a space, `[*batch, ...]`, to initialize a network with.

    >>> example(Box((3,)), 2).shape, example({"mission": Discrete(4)}, 2)["mission"].dtype
    ((2, 3), dtype('int32'))
    """
    if isinstance(space, Mapping):
        return {name: example(part, *batch) for name, part in space.items()}
    return jnp.zeros((*batch, *space.shape), space.dtype)
