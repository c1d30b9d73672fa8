"""Groups of an optimizer, each with its own settings, by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import optax
from jax.tree_util import DictKey, SequenceKey

from trainer.state import PyTree


def group_names(paths: Sequence[tuple[Any, ...]]) -> list[str]:
    """Return the names of the groups of leaves in an optimizer's state, from their paths.

    A group is named by the labels of `optax.multi_transform` and `optax.named_chain`; where these
    are ambiguous, by the positions in `optax.chain` as well.

    Args:
        paths: of the leaves, as `jax.tree_util` returns them.

    Returns:
        A name for each; empty where nothing in a path names a group.

    >>> group_names([(DictKey("trunk"), DictKey("rate")), (DictKey("head"), DictKey("rate"))])
    ['trunk', 'head']
    >>> group_names([(SequenceKey(0), DictKey("rate")), (SequenceKey(2), DictKey("rate"))])
    ['0', '2']
    """
    names = [_group_name(path[:-1], positions=False) for path in paths]
    if len(set(names)) < len(names):
        names = [_group_name(path[:-1], positions=True) for path in paths]
    return names


def learning_rates(opt_state: PyTree) -> dict[str, jax.Array]:
    """Return the learning rates in an optimizer's state, named as metrics: by group if several.

    >>> import jax.numpy as jnp
    >>> sgd = optax.inject_hyperparams(optax.sgd)
    >>> one, two = sgd(learning_rate=0.5), sgd(learning_rate=0.25)
    >>> params = {"head": jnp.ones(2), "trunk": jnp.ones(2)}
    >>> learning_rates(one.init(params))
    {'learning_rate': Array(0.5, dtype=float32)}
    >>> both = optax.multi_transform({"fast": one, "slow": two}, {"head": "fast", "trunk": "slow"})
    >>> sorted(learning_rates(both.init(params)))
    ['learning_rate/fast', 'learning_rate/slow']
    """
    found = optax.tree.get_all_with_path(opt_state, "learning_rate")
    found = [(path, rate) for path, rate in found if isinstance(rate, jax.Array)]  # no schedules
    names = group_names([path for path, _ in found]) if len(found) > 1 else [""]
    return {
        f"learning_rate/{name}" if name else "learning_rate": rate
        for name, (_, rate) in zip(names, found, strict=False)
    }


def _group_name(path: tuple[Any, ...], *, positions: bool) -> str:
    parts = [
        str(part.key if isinstance(part, DictKey) else part.idx)
        for part in path
        if isinstance(part, DictKey) or (positions and isinstance(part, SequenceKey))
    ]
    return "/".join(parts)
