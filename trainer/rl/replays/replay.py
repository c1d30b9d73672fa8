"""Replays: recorded episodes, small enough to keep and exact enough to reproduce."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xxhash
from jax import lax

from trainer.checks.pytrees import is_key
from trainer.rl.environments.environment import Discrete, Environment
from trainer.rl.replays.isolated_steps import STEP, isolate_step
from trainer.state import PyTree

log = logging.getLogger("entracte")

CHUNK = 32
"""Steps that one call reproduces: the device holds so many frames at a time."""

RESET = STEP - 1
"""Folded into an episode's key to make the key of its reset."""

View = Callable[[PyTree, PyTree], PyTree]
"""`(environment's state, params) -> a pytree of arrays`, jittable; such as `env.render`."""


@dataclasses.dataclass(frozen=True, eq=False)
class Replay:
    """One episode: its actions and rewards, and what is needed to reproduce it.

    States and frames are not stored: they follow from the environment, the seed and the actions.
    """

    environment: str
    """The environment's name."""
    lesson: str | None
    """The episode's lesson; None if the environment has none."""
    params: tuple[np.ndarray, ...]
    """Leaves of the environment's params, flattened, in the order of the pytree."""
    seed: int
    """Seed of all random numbers in the episode, together with `number`."""
    number: int
    """Number of the episode among those of this seed, from 0."""
    greedy: bool
    """Whether each action was the likeliest, or sampled."""
    epoch: int
    """Epoch of the state whose policy acted."""
    step: int
    """Optimizer step of that state."""
    actions: np.ndarray
    """`[length, ...]`, int32 or float32, as the environment received them."""
    rewards: np.ndarray
    """float32 `[length]`."""
    terminated: bool
    """Whether the episode terminated."""
    truncated: bool
    """Whether the environment cut it off; both are False if `max_steps` did."""
    checksum: str
    """Checksum of the environment's last state: 16 hexadecimal digits."""

    @property
    def length(self) -> int:
        """Number of steps."""
        return len(self.rewards)

    @property
    def episode_return(self) -> float:
        """Sum of the rewards."""
        return math.fsum(self.rewards.tolist())

    def states(self, env: Environment) -> PyTree:
        """Reproduce the environment's states: the first, and the one after each step.

        Returns:
            The state as a pytree of numpy arrays `[length + 1, ...]`, keys as their data.

        Raises:
            ValueError: the episode differs in this environment, so it is another one.
        """
        return make_replayer(env, lambda state, params: keys_to_data(state))(self)

    def frames(self, env: Environment) -> np.ndarray:
        """Draw the states that `states` reproduces.

        Returns:
            uint8 `[length + 1, height, width, 3]`.

        Raises:
            ValueError: the environment has no `render`, or is another one.
        """
        if env.render is None:
            raise ValueError(f"environment {env.name!r} has no render, so a replay has no frames")
        return make_replayer(env, env.render)(self)


def make_replayer(env: Environment, view: View) -> Callable[[Replay], Any]:
    """Build a function that repeats a replay's actions and views every state.

    It compiles once for episodes of any length.

    Returns:
        `(replay) -> pytree of numpy arrays [length + 1, ...]`. It raises ValueError if the actions
        do not fit the environment, or the episode differs in it.
    """
    reset, view_first, step = jax.jit(env.reset), jax.jit(view), isolate_step(env)
    unflatten = jax.tree.structure(env.params).unflatten  # type: ignore[attr-defined]
    shapes = [(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in jax.tree.leaves(env.params)]

    @jax.jit
    def run_chunk(
        root: jax.Array, start: int, count: int, state: PyTree, actions: jax.Array, params: PyTree
    ) -> Any:
        def body(i: jax.Array, carried: Any) -> Any:
            state, kept = carried
            after = step(root, start + i, state, actions[i], params)
            row = view(after.state, params), after.reward, after.terminated, after.truncated
            return after.state, jax.tree.map(lambda rows, row: rows.at[i].set(row), kept, row)

        shape = jax.eval_shape(view, state, params)
        flags = jax.ShapeDtypeStruct((), jnp.bool_)
        row = shape, jax.ShapeDtypeStruct((), jnp.float32), flags, flags
        kept = jax.tree.map(lambda one: jnp.zeros((CHUNK, *one.shape), one.dtype), row)
        state, kept = lax.fori_loop(0, count, body, (state, kept))
        return state, kept, keys_to_data(state)

    def reproduce(replay: Replay) -> Any:
        leaves = _check_replay(replay, env, shapes)
        params, root = unflatten(leaves), derive_episode_key(replay.seed, replay.number)
        state, _ = reset(jax.random.fold_in(root, RESET), params)
        rows = [jax.tree.map(lambda x: np.asarray(x)[None], view_first(state, params))]
        chunks, last = [], None
        padding = [(0, -replay.length % CHUNK)] + [(0, 0)] * (replay.actions.ndim - 1)
        actions = np.pad(replay.actions.astype(env.action_space.dtype), padding)
        for start in range(0, replay.length, CHUNK):
            part, count = actions[start : start + CHUNK], min(CHUNK, replay.length - start)
            state, kept, last = run_chunk(root, start, count, state, part, params)
            viewed, *outcome = jax.tree.map(np.asarray, kept)
            rows.append(viewed)
            chunks.append(outcome)
        count = replay.length
        outcome = [np.concatenate(parts)[:count] for parts in zip(*chunks, strict=True)]
        _check_outcome(replay, env, *outcome)
        if checksum_of(jax.device_get(last)) != replay.checksum:
            log.warning(
                "a replay of %r ends in another state than the recorded one: another device or "
                "version of jax rounds differently, and frames may differ",
                env.name,
            )
        return jax.tree.map(lambda *parts: np.concatenate(parts)[: count + 1], *rows)

    return reproduce


def derive_episode_key(seed: int, number: int) -> jax.Array:
    """Return the key of an episode, whatever jax's default kind of key is."""
    return jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), number)


def keys_to_data(tree: PyTree) -> PyTree:
    """Return a pytree with its keys as their data."""

    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else leaf, tree)


def checksum_of(state: PyTree) -> str:
    """Return the hash of a state without keys: 16 hexadecimal digits."""
    digest = xxhash.xxh3_64()
    for leaf in jax.tree.leaves(state):
        digest.update(f"{leaf.dtype}{leaf.shape}".encode() + np.asarray(leaf).tobytes())
    return digest.hexdigest()


def _check_replay(
    replay: Replay, env: Environment, shapes: list[tuple[Any, Any]]
) -> list[np.ndarray]:
    """Return the params' leaves with the environment's shapes; refuse a replay of another one."""

    def refuse(what: str, wanted: object, got: object) -> None:
        raise ValueError(f"the replay is not of environment {env.name!r}: {what} {wanted}; {got}")

    space = env.action_space
    if replay.environment != env.name:
        refuse("its environment is", repr(replay.environment), "use that environment")
    if replay.actions.shape[1:] != space.shape:
        refuse("an action has shape", list(space.shape), f"got {list(replay.actions.shape[1:])}")
    if isinstance(space, Discrete):
        low, high = replay.actions.min(), replay.actions.max()
        if replay.actions.dtype.kind != "i" or low < 0 or high >= space.n:
            refuse("actions are whole numbers below", space.n, f"got {low} to {high}")
    sizes = [math.prod(shape) for shape, _ in shapes]
    if [leaf.size for leaf in replay.params] != sizes:
        refuse("params have sizes", sizes, f"got {[leaf.size for leaf in replay.params]}")
    return [
        leaf.reshape(shape).astype(dtype)
        for leaf, (shape, dtype) in zip(replay.params, shapes, strict=True)
    ]


def _check_outcome(
    replay: Replay, env: Environment, rewards: Any, terminated: Any, truncated: Any
) -> None:
    ended = terminated | truncated
    differs = ~np.isclose(rewards, replay.rewards, rtol=1e-4, atol=1e-4)
    differs[:-1] |= ended[:-1]
    ending = bool(terminated[-1]), bool(truncated[-1])
    differs[-1] |= ending != (replay.terminated, replay.truncated)
    if differs.any():
        raise ValueError(
            f"the replay differs in this environment {env.name!r} from step "
            f"{int(np.argmax(differs))} of {replay.length} on: it was recorded with another "
            "version of it, or on a device that rounds differently"
        )
