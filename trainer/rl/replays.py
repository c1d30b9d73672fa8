"""Replays: episodes that a policy played, small enough to keep, exact enough to be seen again."""

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

from trainer.rl.environments.environment import Discrete, Environment
from trainer.rl.isolated_steps import STEP, isolate_step
from trainer.state import PyTree

log = logging.getLogger("entracte")

STRETCH = 32
"""Steps that are looked at in one call: so many frames are on the device at a time."""

RESET = STEP - 1
"""Folded into an episode's key, for the key of its beginning."""

Look = Callable[[PyTree, PyTree], PyTree]
"""`(environment's state, params) -> what is to be seen of it`, jittable."""


@dataclasses.dataclass(frozen=True, eq=False)
class Replay:
    """One episode: what was done in it, and from where it can be made again.

    Its states and frames are not in it: they follow from the environment, the seed and the actions.
    """

    environment: str
    """The environment's name."""
    lesson: str | None
    """The lesson played, where the environment has lessons."""
    params: tuple[np.ndarray, ...]
    """Leaves of the environment's params, flat, in the order of the pytree."""
    seed: int
    """From which all that is random in it comes, with `number`."""
    number: int
    """Of the episode among those of this seed, from 0."""
    greedy: bool
    """Whether the likeliest action was chosen each time, or one was drawn."""
    epoch: int
    """Of the state that played."""
    step: int
    """Of the state that played."""
    actions: np.ndarray
    """`[length, ...]`, int32 or float32, as the environment took them."""
    rewards: np.ndarray
    """float32 `[length]`."""
    terminated: bool
    """The episode ended by what happened in it."""
    truncated: bool
    """It was cut off by the environment; neither where it was left at `max_steps`."""
    checksum: str
    """Of the environment's last state: 16 hexadecimal digits."""

    @property
    def length(self) -> int:
        """Steps."""
        return len(self.rewards)

    @property
    def episode_return(self) -> float:
        """The sum of its rewards."""
        return math.fsum(self.rewards.tolist())

    def states(self, env: Environment) -> PyTree:
        """Make the environment's states again: the first, and the one after each step.

        Args:
            env: that it was played in.

        Returns:
            The state as a pytree of numpy arrays `[length + 1, ...]`, keys as their numbers.

        Raises:
            ValueError: the episode goes otherwise in this environment, which is another one then.
        """
        return make_replayer(env, lambda state, params: keys_to_data(state))(self)

    def frames(self, env: Environment) -> np.ndarray:
        """Draw the states, as `states` makes them again.

        Returns:
            uint8 `[length + 1, height, width, 3]`.

        Raises:
            ValueError: the environment cannot be drawn, or is another one.
        """
        if env.render is None:
            raise ValueError(f"environment {env.name!r} has no render, so a replay has no frames")
        return make_replayer(env, env.render)(self)


def make_replayer(env: Environment, look: Look) -> Callable[[Replay], Any]:
    """Make a function that plays a replay's actions again and looks at every state.

    Args:
        env: that replays were played in; for episodes of any length one program.
        look: at a state, such as `env.render`.

    Returns:
        `(replay) -> pytree of numpy arrays [length + 1, ...]`. It raises ValueError where the
        actions do not suit the environment, or the episode goes otherwise in it.
    """
    begun, seen_first, step = jax.jit(env.reset), jax.jit(look), isolate_step(env)
    unflatten = jax.tree.structure(env.params).unflatten  # type: ignore[attr-defined]
    shapes = [(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in jax.tree.leaves(env.params)]

    @jax.jit
    def stretch(
        root: jax.Array, since: int, count: int, state: PyTree, actions: jax.Array, params: PyTree
    ) -> Any:
        def body(i: jax.Array, carried: Any) -> Any:
            state, kept = carried
            after = step(root, since + i, state, actions[i], params)
            seen = look(after.state, params), after.reward, after.terminated, after.truncated
            return after.state, jax.tree.map(lambda rows, row: rows.at[i].set(row), kept, seen)

        shape = jax.eval_shape(look, state, params)
        flags = jax.ShapeDtypeStruct((), jnp.bool_)
        row = shape, jax.ShapeDtypeStruct((), jnp.float32), flags, flags
        kept = jax.tree.map(lambda one: jnp.zeros((STRETCH, *one.shape), one.dtype), row)
        state, kept = lax.fori_loop(0, count, body, (state, kept))
        return state, kept, keys_to_data(state)

    def look_at(replay: Replay) -> Any:
        leaves = _fitting(replay, env, shapes)
        params, root = unflatten(leaves), derive_episode_key(replay.seed, replay.number)
        state, _ = begun(jax.random.fold_in(root, RESET), params)
        rows = [jax.tree.map(lambda x: np.asarray(x)[None], seen_first(state, params))]
        measured, last = [], None
        padding = [(0, -replay.length % STRETCH)] + [(0, 0)] * (replay.actions.ndim - 1)
        actions = np.pad(replay.actions.astype(env.action_space.dtype), padding)
        for since in range(0, replay.length, STRETCH):
            part, count = actions[since : since + STRETCH], min(STRETCH, replay.length - since)
            state, kept, last = stretch(root, since, count, state, part, params)
            seen, *course = jax.tree.map(np.asarray, kept)
            rows.append(seen)
            measured.append(course)
        count = replay.length
        course = [np.concatenate(parts)[:count] for parts in zip(*measured, strict=True)]
        _check_course(replay, env, *course)
        if checksum_of(jax.device_get(last)) != replay.checksum:
            log.warning(
                "a replay of %r ends in another state than it was played to: another device or "
                "version of jax rounds otherwise, and what is seen may differ",
                env.name,
            )
        return jax.tree.map(lambda *parts: np.concatenate(parts)[: count + 1], *rows)

    return look_at


def derive_episode_key(seed: int, number: int) -> jax.Array:
    """Give the key of an episode, whatever kind of key is jax's default."""
    return jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), number)


def keys_to_data(tree: PyTree) -> PyTree:
    """Give a pytree with its keys as their numbers."""

    def one(leaf: jax.Array) -> jax.Array:
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(leaf) if is_key else leaf

    return jax.tree.map(one, tree)


def checksum_of(state: PyTree) -> str:
    """Hash a state without keys: 16 hexadecimal digits."""
    digest = xxhash.xxh3_64()
    for leaf in jax.tree.leaves(state):
        digest.update(f"{leaf.dtype}{leaf.shape}".encode() + np.asarray(leaf).tobytes())
    return digest.hexdigest()


def _fitting(replay: Replay, env: Environment, shapes: list[tuple[Any, Any]]) -> list[np.ndarray]:
    """Give the params' leaves as the environment has them; refuse what cannot be of it."""

    def refuse(what: str, wanted: object, got: object) -> None:
        raise ValueError(f"the replay is not of environment {env.name!r}: {what} {wanted}; {got}")

    space = env.action_space
    if replay.environment != env.name:
        refuse("it was played in", repr(replay.environment), "give the environment it is of")
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


def _check_course(
    replay: Replay, env: Environment, rewards: Any, terminated: Any, truncated: Any
) -> None:
    over = terminated | truncated
    apart = ~np.isclose(rewards, replay.rewards, rtol=1e-4, atol=1e-4)
    apart[:-1] |= over[:-1]
    ending = bool(terminated[-1]), bool(truncated[-1])
    apart[-1] |= ending != (replay.terminated, replay.truncated)
    if apart.any():
        raise ValueError(
            f"the replay goes otherwise in this environment {env.name!r} from step "
            f"{int(np.argmax(apart))} of {replay.length} on: it was played in another version of "
            "it, or on a device that rounds otherwise"
        )
