"""Adapter for environments of gymnasium: objects on the host, stepped in Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from trainer.host.extras import require_extra
from trainer.rl.environments import adapters
from trainer.rl.environments.environment import Space, example
from trainer.state import PyTree


class HostStep(NamedTuple):
    """The results of actions in several environments, as numpy arrays `[env, ...]`."""

    observation: PyTree
    """The policy's next observation: of a new episode if the step ended one."""
    final_observation: PyTree
    """The observation of the step itself, before any reset."""
    reward: np.ndarray
    """float32 `[env]`."""
    terminated: np.ndarray
    """bool `[env]`."""
    truncated: np.ndarray
    """bool `[env]`: cut off, and not terminated by the same step."""


def from_gymnasium(make: str | Callable[[], Any], envs: int, *, seed: int = 0) -> HostEnvironments:
    """Build environments of gymnasium, which step on the host while the policy runs on the device.

    `rollout` uses them as any other: one dispatch of the policy a step, then each steps in turn.
    Their state is in Python objects and not in the train state, so an interrupted run does not
    resume bit for bit: it resumes with new episodes, and logs it. Two runs from the beginning are
    the same bit for bit if the environments' random numbers all come from `reset(seed=...)`.

    Observations of several spaces become a dict of arrays; names of nested ones are paths; 64 bits
    become 32. The next episode begins in the step that ends one; termination and truncation are
    told apart as gymnasium does.

    Args:
        make: the id of a registered environment, or a function without arguments that makes one.
        envs: number of environments.
        seed: of their resets.

    Raises:
        ImportError: `make` is an id, and gymnasium is not installed.
        TypeError: `make` does not make environments of gymnasium, each a new one.
        ValueError: `envs` is less than 1, or their spaces are not supported.

    Source: M. Towers et al., Gymnasium: A Standard Interface for Reinforcement Learning
    Environments, 2024.

    >>> with from_gymnasium("CartPole-v1", 2) as envs:
    ...     envs.reset().shape, envs.step(np.array([0, 1])).reward.tolist(), envs.action_space
    ((2, 4), [1.0, 1.0], Discrete(n=2))
    """
    if envs < 1:
        raise ValueError(f"from_gymnasium needs at least 1 environment; got {envs}")
    made: list[Any] = []
    try:
        for _ in range(envs):
            made.append(_make_one(make))
            if any(made[-1] is other for other in made[:-1]):
                raise TypeError(
                    "make must return a new environment at every call; it returned one for the "
                    "second time: make it inside the function"
                )
        return HostEnvironments(made, seed=seed)
    except BaseException:
        for env in made:
            env.close()
        raise


class HostEnvironments:
    """Environments that step on the host, one after the other, in this process.

    A resource: `close` it, or use it in a `with`. `from_gymnasium` makes it.

    Args:
        envs: environments of gymnasium, with the same spaces.
        seed: of their resets.
    """

    params: tuple[()] = ()
    lessons: tuple[str, ...] = ()
    """Neither params nor lessons: a lesson is data, and these objects take none."""

    def __init__(self, envs: Sequence[Any], *, seed: int) -> None:
        actions, observations = envs[0].action_space, envs[0].observation_space
        spec = getattr(envs[0], "spec", None)
        self.name: str = getattr(spec, "id", None) or type(envs[0].unwrapped).__name__
        self.action_space = adapters.action_space(actions, self.name)
        self.observation_space = _observation_space(observations, self.name)
        self.seed = seed
        self.calls = 0
        """Resets and steps so far, by which a rollout detects those of other code."""
        for index, env in enumerate(envs):
            own = env.action_space, env.observation_space
            if own != (actions, observations):
                raise ValueError(
                    f"environment {index} of {self.name!r} must have the spaces of the first, "
                    f"{actions} and {observations}; it has {own[0]} and {own[1]}"
                )
        self._envs = tuple(envs)
        self._zeros = jax.tree.map(np.asarray, example(self.observation_space, len(envs)))
        self._closed = False
        self._first_action = int(getattr(actions, "start", 0))
        self._starts = {
            path: int(part.start)
            for path, part in adapters.flatten_space(observations)
            if getattr(part, "start", 0)
        }

    def __len__(self) -> int:
        return len(self._envs)

    def __enter__(self) -> HostEnvironments:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def reset(self, number: int = 0) -> PyTree:
        """Begin an episode in each, seeded by the seed, a number and the environment's index.

        Returns:
            Observations, numpy arrays `[env, ...]`.
        """
        observation = self._empty()
        seeds = np.random.SeedSequence((self.seed, number)).generate_state(len(self))

        def reset_one(index: int, env: Any) -> None:
            self._put(observation, index, env.reset(seed=int(seeds[index]))[0])

        self._call_each(reset_one)
        return observation

    def step(self, action: np.ndarray) -> HostStep:
        """Step each, and begin a new episode in those whose episode ended.

        Args:
            action: `[env, ...]`, in the action space.
        """
        observation, final = self._empty(), self._empty()
        reward = np.zeros(len(self), np.float32)
        terminated, truncated = np.zeros((2, len(self)), bool)

        def step_one(index: int, env: Any) -> None:
            one = action[index]
            taken = one if one.ndim else int(one) + self._first_action
            own, reward[index], over, cut_off, _ = env.step(taken)
            terminated[index], truncated[index] = over, cut_off and not over
            self._put(final, index, own)
            self._put(observation, index, env.reset()[0] if over or cut_off else own)

        self._call_each(step_one)
        return HostStep(observation, final, reward, terminated, truncated)

    def check(self, params: PyTree) -> None:
        """Raise ValueError if there are params: the environments have their own."""
        if jax.tree.leaves(params):
            raise ValueError(f"{self.name!r} is on the host and takes no params; got {params}")

    def check_count(self, envs: int) -> None:
        """Raise ValueError if the number of environments is not `envs`."""
        if envs != len(self):
            raise ValueError(
                f"{len(self)} environments of {self.name!r} were made, but envs={envs}: set "
                f"envs={len(self)}"
            )

    def close(self) -> None:
        """Close each; a second time does nothing."""
        if not self._closed:
            self._closed = True
            for env in self._envs:
                env.close()

    def _call_each(self, function: Callable[[int, Any], None]) -> None:
        """Call a function with the index of each and itself, and note it on an error."""
        if self._closed:
            raise ValueError(f"the environments of {self.name!r} are closed: make new ones")
        self.calls += 1
        index = 0
        try:
            for index, env in enumerate(self._envs):
                function(index, env)
        except Exception as error:
            error.add_note(f"in environment {index} of {len(self)} ({self.name!r})")
            raise

    def _empty(self) -> PyTree:
        return jax.tree.map(np.zeros_like, self._zeros)

    def _put(self, observations: PyTree, index: int, one: Any) -> None:
        """Write one environment's observation into the arrays of all."""
        if not isinstance(observations, dict):
            observations[index] = one - self._starts[""] if self._starts else one
            return
        for path, array in adapters.flatten_observation(one).items():
            observations[path][index] = array - self._starts.get(path, 0)


def _make_one(make: str | Callable[[], Any]) -> Any:
    if isinstance(make, str):
        with require_extra("gymnasium", "from_gymnasium", "gymnasium"):
            import gymnasium
        return gymnasium.make(make)
    made = make() if callable(make) else make
    is_one = all(hasattr(made, name) for name in ("observation_space", "unwrapped", "close"))
    if not (callable(make) and is_one) or hasattr(made, "num_envs"):
        verb = "returned" if callable(make) else "is"
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
                f"got {declared}: wrap the environment so that it returns such"
            )
        dtype = jax.dtypes.canonicalize_dtype(part.dtype)
        shapes[path] = jax.ShapeDtypeStruct(part.shape, dtype)
    return adapters.observation_space(declared, shapes.get("", shapes))
