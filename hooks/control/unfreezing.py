"""A hook that starts to train what an optimizer holds frozen."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import jax

from hooks.combining import Chain, chain
from trainer import Hook, TrainState
from trainer.checks.arguments import require_integer
from trainer.checks.suggestions import suggest_and_list
from trainer.state import PyTree, read_epoch
from trainer.supervised.hyperparams import fill_leaf
from trainer.supervised.optimizers import FrozenState


def unfreeze_at(epoch: int, label: str | None = None) -> Chain:
    """Train the parameters that `trainer.optimizers.frozen` holds frozen, from an epoch on.

    It changes data in the optimizer's state, so nothing is compiled again. It never freezes again.

    Args:
        epoch: the first epoch in which they train, counted from 1.
        label: of `optax.multi_transform`, whose frozen optimizer to start; None for a frozen
            optimizer under no label.

    Raises:
        ValueError: the epoch is below 1; before training, no frozen optimizer is under this label:
            the existing ones are listed.

    >>> import jax.numpy as jnp, optax
    >>> from trainer.supervised import optimizers
    >>> optimizer = optax.multi_transform(
    ...     {"backbone": optimizers.frozen(optax.adam(1e-4)), "head": optax.adam(1e-3)},
    ...     optimizers.labels({"head": "^head"}, default="backbone"),
    ... )
    >>> opt_state = optimizer.init({"dense": jnp.ones(2), "head": jnp.ones(2)})
    >>> state = TrainState.create(params={}, opt_state=opt_state, rng=jax.random.key(0))
    >>> hook = unfreeze_at(3, "backbone")
    >>> live = lambda state: bool(state.opt_state.inner_states["backbone"].inner_state.live)
    >>> live(hook(state.replace(epoch=jnp.int32(1)), {}))    # epoch 2 comes next
    False
    >>> live(hook(state.replace(epoch=jnp.int32(2)), {}))
    True
    """
    require_integer("epoch", epoch, 1)
    title = f"unfreeze_at/{epoch}" + (f"/{label}" if label is not None else "")

    def run(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        if read_epoch(state) + 1 < epoch:
            return state
        pairs, structure = _flatten(state.opt_state)
        leaves, changed = [leaf for _, leaf in pairs], False
        for place, (path, leaf) in enumerate(pairs):
            if isinstance(leaf, FrozenState) and _label(path) == label:
                live = fill_leaf(leaf.live, True)
                if live is not leaf.live:
                    leaves[place], changed = leaf._replace(live=live), True
        return state.replace(opt_state=jax.tree.unflatten(structure, leaves)) if changed else state

    def start(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        leaves, _ = _flatten(state.opt_state)
        there = {_label(path) for path, leaf in leaves if isinstance(leaf, FrozenState)}
        if label not in there:
            shown = sorted("None" if one is None else repr(one) for one in there)
            raise ValueError(
                f"hook {title!r} needs a frozen optimizer under the label {label!r}"
                f"{suggest_and_list(repr(label), shown)}: make it with "
                "trainer.optimizers.frozen(...), under optax.multi_transform if there are others"
            )
        return run(state, metrics)

    return chain(Hook(start, f"{title}/start", event="start"), Hook(run, title, event="epoch"))


def _flatten(opt_state: PyTree) -> tuple[list[tuple[Any, Any]], Any]:
    """Flatten to (path, leaf), with each `FrozenState` as one leaf."""
    return jax.tree_util.tree_flatten_with_path(
        opt_state, is_leaf=lambda node: isinstance(node, FrozenState)
    )


def _label(path: Any) -> Any:
    """Return the innermost label of `optax.multi_transform` on a path, or None."""
    labels = [
        after.key
        for before, after in itertools.pairwise(path)
        if getattr(before, "name", None) == "inner_states"
    ]
    return labels[-1] if labels else None
