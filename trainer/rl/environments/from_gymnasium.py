"""Environments of gymnasium: objects on the host, which step in Python."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from trainer.host.extras import require_extra
from trainer.rl.environments import adapters
from trainer.rl.environments.environment import Space
from trainer.state import PyTree


class HostStep(NamedTuple):
    """What became of the actions in several environments, as numpy arrays `[env, ...]`."""

    observation: PyTree
    """What the policy sees next: of a new episode where the step ended one."""
    final_observation: PyTree
    """The step's own, before any reset."""
    reward: np.ndarray
    """float32 `[env]`."""
    terminated: np.ndarray
    """bool `[env]`."""
    truncated: np.ndarray
    """bool `[env]`: cut off, and not terminated in the same step."""


def from_gymnasium(make: str | Callable[[], Any], envs: int, *, seed: int = 0) -> HostEnvironments:
    """Make environments of gymnasium, which step on the host while the policy runs on the device.

    `rollout` plays in them as in any other: one dispatch of the policy a step, then each steps in
    turn. Their state is in Python objects and not in the training's, so they are outside the law
    that a run which was stopped goes on bit for bit: it goes on with new episodes, and says so.
    Two runs from the beginning are the same bit for bit, where the environments draw at random
    from what `reset(seed=...)` seeds alone.

    Observations of several spaces become a dict of arrays, what is nested named by its path; 64
    bits become 32. An episode that ends, by its own doing or by a time limit, which gymnasium tells
    apart, is followed by a new one at once.

    Args:
        make: the id of a registered environment, or a function without arguments that makes one.
        envs: how many to make.
        seed: of their resets.

    Raises:
        ImportError: `make` is an id, and gymnasium is not installed.
        TypeError: `make` does not make environments of gymnasium, each a new one.
        ValueError: there are none to make, or their spaces are none of ours.

    Source: M. Towers et al., Gymnasium: A Standard Interface for Reinforcement Learning
    Environments, 2024.

    >>> with from_gymnasium("CartPole-v1", 2) as envs:
    ...     envs.reset().shape, envs.step(np.array([0, 1])).reward.tolist(), envs.action_space
    ((2, 4), [1.0, 1.0], Discrete(n=2))
    """
    if envs < 1:
        raise ValueError(f"from_gymnasium needs at least 1 environment; got {envs}")
    members: list[Any] = []
    try:
        for _ in range(envs):
            members.append(_made(make))
            if any(members[-1] is other for other in members[:-1]):
                raise TypeError(
                    "make must give a new environment at every call; it gave one for the second "
                    "time: make it within the function"
                )
        return HostEnvironments(members, seed=seed)
    except BaseException:
        for member in members:
            member.close()
        raise


class HostEnvironments:
    """Environments that step on the host, one after the other, in this process.

    A resource: `close` it, or use it in a `with`. `from_gymnasium` makes it.

    Args:
        members: environments of gymnasium, all alike.
        seed: of their resets.
    """

    params: tuple[()] = ()
    lessons: tuple[str, ...] = ()
    """None of either: what a lesson changes is data, which cannot be told to an object."""

    def __init__(self, members: Sequence[Any], *, seed: int) -> None:
        actions, observations = members[0].action_space, members[0].observation_space
        spec = getattr(members[0], "spec", None)
        self.name: str = getattr(spec, "id", None) or type(members[0].unwrapped).__name__
        self.action_space = adapters.action_space(actions, self.name)
        self.observation_space = _observation_space(observations, self.name)
        self.seed = seed
        self.taken = 0
        """Times that they were reset or stepped: by it a player tells whether others played."""
        for index, member in enumerate(members):
            own = member.action_space, member.observation_space
            if own != (actions, observations):
                raise ValueError(
                    f"environment {index} of {self.name!r} must have the spaces of the first, "
                    f"{actions} and {observations}; it has {own[0]} and {own[1]}"
                )
        self._members = tuple(members)
        self._closed, self._at = False, 0
        self._first_action = int(getattr(actions, "start", 0))
        self._starts = {
            path: int(part.start)
            for path, part in adapters.flatten_space(observations)
            if getattr(part, "start", 0)
        }

    def __len__(self) -> int:
        return len(self._members)

    def __enter__(self) -> HostEnvironments:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def reset(self, number: int = 0) -> PyTree:
        """Begin an episode in each, seeded by the seed, this number and the environment's index.

        Returns:
            Observations, numpy arrays `[env, ...]`.
        """
        observation = self._empty()
        seeds = np.random.SeedSequence((self.seed, number)).generate_state(len(self))
        with self._noting():
            for index, member in self._each():
                self._put(observation, index, member.reset(seed=int(seeds[index]))[0])
        return observation

    def step(self, action: np.ndarray) -> HostStep:
        """Step each, and begin a new episode in those in which one ended.

        Args:
            action: `[env, ...]`, of the action space.
        """
        observation, final = self._empty(), self._empty()
        reward = np.zeros(len(self), np.float32)
        terminated, truncated = np.zeros((2, len(self)), bool)
        with self._noting():
            for index, member in self._each():
                own, reward[index], over, cut_off, _ = member.step(self._action(action[index]))
                terminated[index], truncated[index] = over, cut_off and not over
                self._put(final, index, own)
                self._put(observation, index, member.reset()[0] if over or cut_off else own)
        return HostStep(observation, final, reward, terminated, truncated)

    def check(self, params: PyTree) -> None:
        """Refuse params, as the environments are made with theirs.

        Raises:
            ValueError: there are some.
        """
        if jax.tree.leaves(params):
            raise ValueError(f"{self.name!r} is on the host and takes no params; got {params}")

    def check_count(self, envs: int) -> None:
        """Check that there are as many as somebody counts on.

        Raises:
            ValueError: there are not.
        """
        if envs != len(self):
            raise ValueError(
                f"{len(self)} environments were made of {self.name!r}, and {envs} are to play: "
                f"say envs={len(self)}"
            )

    def close(self) -> None:
        """Close each; a second time does nothing."""
        if not self._closed:
            self._closed = True
            for member in self._members:
                member.close()

    def _each(self) -> Iterator[tuple[int, Any]]:
        """Give each with its index."""
        if self._closed:
            raise ValueError(f"the environments of {self.name!r} are closed: make new ones")
        self.taken += 1
        for index, member in enumerate(self._members):
            self._at = index
            yield index, member

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        """Note on an exception whose it is; one around the loop costs less than one a step."""
        self._at = 0
        try:
            yield
        except Exception as error:
            error.add_note(f"in environment {self._at} of {len(self)} ({self.name!r})")
            raise

    def _action(self, action: np.ndarray) -> Any:
        return int(action) + self._first_action if action.ndim == 0 else action

    def _empty(self) -> PyTree:
        return _zeros(self.observation_space, len(self))

    def _put(self, observations: PyTree, index: int, one: Any) -> None:
        """Write one environment's observation to its place among all."""
        if not isinstance(observations, dict):
            observations[index] = one - self._starts[""] if self._starts else one
            return
        for path, array in adapters.flatten_observation(one).items():
            observations[path][index] = array - self._starts.get(path, 0)


def _zeros(space: Space, *batch: int) -> PyTree:
    """Give zeros of a space as numpy arrays `[*batch, ...]`, to be written to."""
    if isinstance(space, Mapping):
        return {name: _zeros(part, *batch) for name, part in space.items()}
    return np.zeros((*batch, *space.shape), space.dtype)


def _made(make: str | Callable[[], Any]) -> Any:
    if isinstance(make, str):
        with require_extra("gymnasium", "from_gymnasium", "gymnasium"):
            import gymnasium
        return gymnasium.make(make)
    made = make() if callable(make) else make
    is_one = all(hasattr(made, name) for name in ("observation_space", "unwrapped", "close"))
    if not (callable(make) and is_one) or hasattr(made, "num_envs"):
        verb = "gave" if callable(make) else "is"
        raise TypeError(
            "make must be an id of gymnasium, or a function that makes one environment, not "
            f"several at once; it {verb} a {type(made).__name__}"
        )
    return made


def _observation_space(declared: Any, name: str) -> Space:
    shapes = {}
    for path, part in adapters.flatten_space(declared):
        if getattr(part, "dtype", None) is None or part.shape is None:
            raise ValueError(
                f"observations of {name!r} must be arrays of a fixed shape, or several by name; "
                f"got {declared}: wrap the environment so that it gives such"
            )
        dtype = jax.dtypes.canonicalize_dtype(part.dtype)
        shapes[path] = jax.ShapeDtypeStruct(part.shape, dtype)
    return adapters.observation_space(declared, shapes.get("", shapes))
