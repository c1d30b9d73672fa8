"""What an environment is: pure functions over its state, and spaces of what goes in and out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from trainer.state import PyTree


@dataclasses.dataclass(frozen=True)
class Discrete:
    """Whole numbers from 0 to `n - 1`, int32 `()`."""

    n: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one element: ()."""
        return ()

    @property
    def dtype(self) -> Any:
        """Of one element: int32."""
        return jnp.dtype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class Box:
    """Arrays of a shape, between two bounds that are the same for all entries."""

    shape: tuple[int, ...]
    low: float = -float("inf")
    high: float = float("inf")
    dtype: Any = dataclasses.field(default_factory=lambda: jnp.dtype(jnp.float32))


Space = Discrete | Box | Mapping[str, "Discrete | Box"]
"""Of observations: one array, or several by name. Of actions: a `Discrete` or a `Box`."""


class Step(NamedTuple):
    """What became of an action."""

    state: PyTree
    """Of the environment."""
    observation: PyTree
    """Of the observation space."""
    reward: jax.Array
    """() float32."""
    terminated: jax.Array
    """() bool: the episode ended by what happened in it; there is nothing to come."""
    truncated: jax.Array
    """() bool: the episode was cut off, by a time limit say; there would have been more to come."""
    info: Mapping[str, jax.Array] = {}
    """What wrappers add: `episode_return`, `episode_length`, `lesson`, `final_observation`."""


def _anything(params: PyTree) -> None:
    """Accept any parameters."""


class Environment(NamedTuple):
    """An environment as pure functions: one of it, without a batch axis; `vmap` makes many.

    What a lesson changes is data: `params`, a pytree of arrays, goes into every call, so that
    another lesson compiles nothing anew.
    """

    name: str
    reset: Callable[[jax.Array, PyTree], tuple[PyTree, PyTree]]
    """`(key, params) -> (state, observation)`: begin an episode; jittable."""
    step: Callable[[jax.Array, PyTree, jax.Array, PyTree], Step]
    """`(key, state, action, params) -> Step`; jittable. Does not reset by itself."""
    observation_space: Space
    action_space: Discrete | Box
    params: PyTree
    """The lesson to run where none is named."""
    check: Callable[[PyTree], None] = _anything
    """`(params)`: raises ValueError where they are outside the environment's range; on the host."""
    render: Callable[[PyTree, PyTree], jax.Array] | None = None
    """`(state, params) -> uint8 [height, width, 3]`, jittable; None where it cannot be drawn."""
    lessons: tuple[str, ...] = ()
    """Names of the lessons that it draws from, see `trainer.rl.curriculum`."""


def example(space: Space, *batch: int) -> PyTree:
    """Give zeros of a space, `[*batch, ...]`, such as a network is initialised with.

    >>> example(Box((3,)), 2).shape, example({"mission": Discrete(4)}, 2)["mission"].dtype
    ((2, 3), dtype('int32'))
    """
    if isinstance(space, Mapping):
        return {name: example(part, *batch) for name, part in space.items()}
    return jnp.zeros((*batch, *space.shape), space.dtype)
