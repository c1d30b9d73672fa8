"""Additions to optax: parameter groups by path, a mask for weight decay, frozen groups."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from trainer.checks.arguments import describe_value
from trainer.checks.pytrees import format_path
from trainer.checks.suggestions import suggest_and_list
from trainer.state import PyTree
from trainer.supervised.optimizer_updates import check_optimizer


def labels(rules: Mapping[str, str], default: str) -> Callable[[PyTree], PyTree]:
    """Build the labels that `optax.multi_transform` takes, from the paths of parameters.

    Args:
        rules: label to a regular expression, searched in a leaf's path (`layers/0/kernel`); the
            first that matches applies.
        default: label of the leaves that match no rule.

    Returns:
        `(params) -> labels`, a pytree in the structure of params with a string at each leaf.

    Raises:
        ValueError: a rule is no regular expression, or, on a call, matches no leaf.

    >>> params = {"head": {"kernel": jnp.ones((2, 3))}, "dense": {"kernel": jnp.ones((2, 2))}}
    >>> labels({"fast": "^head/"}, default="slow")(params)
    {'dense': {'kernel': 'slow'}, 'head': {'kernel': 'fast'}}
    >>> optimizer = optax.multi_transform(
    ...     {"fast": optax.adamw(1e-2), "slow": optax.sgd(1e-4)},
    ...     labels({"fast": "^head/"}, default="slow"),
    ... )
    """
    if not isinstance(rules, Mapping):
        raise TypeError(
            "labels takes rules, a dict from a label to a regular expression of paths, such as "
            f'{{"fast": "^head/"}}; got {describe_value(rules)}'
        )
    patterns = {label: _compile(label, rule) for label, rule in rules.items()}

    def label(params: PyTree) -> PyTree:
        paths = [format_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        for name, pattern in patterns.items():
            if not any(map(pattern.search, paths)):
                raise ValueError(
                    f"the rule {pattern.pattern!r} of label {name!r} matches no parameter"
                    f"{suggest_and_list(pattern.pattern, paths)}"
                )
        labels = [
            next((name for name, pattern in patterns.items() if pattern.search(path)), default)
            for path in paths
        ]
        return jax.tree.unflatten(jax.tree.structure(params), labels)

    return label


def _compile(label: str, rule: str) -> re.Pattern[str]:
    try:
        return re.compile(rule)
    except re.error as error:
        raise ValueError(
            f"the rule {rule!r} of label {label!r} is no regular expression: {error}"
        ) from error


def decay_mask(params: PyTree) -> PyTree:
    """Return which parameters to decay: those with two axes or more.

    Biases and scales of normalisations have one axis and are excluded; where those of many layers
    are stacked, by their names `bias` and `scale`. For `mask=` of `optax.adamw`, `optax.lion` and
    `optax.add_decayed_weights`.

    >>> decay_mask({"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)})
    {'bias': False, 'kernel': True}
    >>> optimizer = optax.adamw(1e-3, weight_decay=0.1, mask=decay_mask)
    """

    def decays(path: tuple[Any, ...], leaf: Any) -> bool:
        return jnp.ndim(leaf) >= 2 and format_path(path[-1:]) not in ("bias", "scale")

    return jax.tree_util.tree_map_with_path(decays, params)


class FrozenState(NamedTuple):
    """The state of `frozen`."""

    live: jax.Array
    """() bool, whether the optimizer updates; `hooks.unfreeze_at` sets it."""
    inner_state: optax.OptState
    """The inner optimizer's state, its initial one while frozen."""


def frozen(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Freeze an optimizer until it is set live: neither parameters nor its own state change.

    Whether it is live is data in the optimizer's state, so unfreezing does not compile again, and
    the first live step is the optimizer's first, its bias correction included. The gradients are
    computed anyway, and count in the norm that `clip_norm` of `supervised` limits. To freeze
    parameters for good, use `optax.freeze`, or `optax.set_to_zero` under a label.

    >>> params = {"w": jnp.ones(2)}
    >>> optimizer = frozen(optax.sgd(0.5))
    >>> state = optimizer.init(params)
    >>> optimizer.update({"w": jnp.ones(2)}, state, params)[0]["w"].tolist()
    [0.0, 0.0]
    >>> optimizer.update({"w": jnp.ones(2)}, state._replace(live=jnp.array(True)))[0]["w"].tolist()
    [-0.5, -0.5]
    """
    check_optimizer(optimizer, "frozen")
    optimizer = optax.with_extra_args_support(optimizer)

    def init(params: PyTree) -> FrozenState:
        return FrozenState(jnp.zeros((), bool), optimizer.init(params))

    def update(
        updates: PyTree, state: FrozenState, params: PyTree | None = None, **extra: object
    ) -> tuple[PyTree, FrozenState]:
        live, before = state
        updates, after = optimizer.update(updates, before, params, **extra)
        updates = jax.tree.map(lambda update: jnp.where(live, update, 0), updates)
        after = jax.tree.map(lambda new, old: jnp.where(live, new, old), after, before)
        return updates, FrozenState(live, after)

    return optax.GradientTransformationExtraArgs(init, update)
