"""Checks, initialisation and updates of optimizers, with the extra arguments that some take."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from trainer.checks.arguments import get_signature
from trainer.checks.pytrees import has_same_structure, list_differences
from trainer.state import PyTree, TrainState

ValueFn = Callable[[PyTree], jax.Array]
"""`(params) -> ()`, the loss of one batch."""

EXTRA_ARG_SETS = (
    ("value", "grad", "value_fn"),
    ("value", "grad", "value_fn", "obj_fn"),
    ("grad_fn",),
    (),
)
"""Sets of extra arguments of optax's optimizers, tried in this order until one is accepted.

Optax's own loops pass the first. `optax.contrib.sophia` calls `value_fn` `obj_fn`, and a line
search refuses unknown arguments. `optax.contrib.sam` takes `grad_fn` only.
"""


def check_optimizer(optimizer: Any, who: str) -> None:
    """Check that an optimizer is one, before it is used.

    Raises:
        TypeError: it is something else.
        ValueError: it needs its own kind of parameters, as `optax.lookahead` does.

    >>> check_optimizer(optax.adam, "supervised")
    Traceback (most recent call last):
        ...
    TypeError: supervised needs an optimizer, such as optax.adam(1e-3); got the function adam, which
    makes one: call it, adam(1e-3)
    """
    methods = (getattr(optimizer, name, None) for name in ("init", "update"))
    if isinstance(optimizer, type) or not all(map(callable, methods)):
        got = f"{type(optimizer).__name__} {optimizer!r:.100}"
        if callable(optimizer):
            name = getattr(optimizer, "__name__", type(optimizer).__name__)
            got = f"the function {name}, which makes one: call it, {name}(1e-3)"
            if _is_schedule(optimizer):
                got = "a schedule of the step, which goes into one: optax.adam(schedule)"
        raise TypeError(f"{who} needs an optimizer, such as optax.adam(1e-3); got {got}")
    try:
        state = jax.eval_shape(lambda: optimizer.init({"kernel": jnp.zeros((2, 2))}))
    except Exception:
        return  # its rules need the real parameters: `init_optimizer` checks it
    _check_state(state, who)


def _is_schedule(function: Any) -> bool:
    """Return whether a function takes only a step; a factory of optimizers takes a rate."""
    signature = get_signature(function)
    names = [] if signature is None else list(signature.parameters)
    return names in (["count"], ["step"], ["_"])


def init_optimizer(optimizer: optax.GradientTransformation, params: PyTree, who: str) -> PyTree:
    """Build the state of an optimizer.

    Raises:
        ValueError: it needs its own kind of parameters.
    """
    _check_state(jax.eval_shape(optimizer.init, params), who)
    return jax.jit(optimizer.init)(params)


def update_optimizer(
    optimizer: optax.GradientTransformation,
    updates: PyTree,
    opt_state: PyTree,
    params: PyTree,
    *,
    value: jax.Array,
    grad: PyTree,
    value_fn: ValueFn,
) -> tuple[PyTree, PyTree]:
    """Compute (updates, opt_state) of an optimizer, passing the extra arguments that it takes.

    `updates` are gradients, possibly clipped, and `grad` those that are not; `value`, (), is the
    loss at the parameters, and `value_fn` computes that of the same batch at others.

    Raises:
        ValueError: the state belongs to another optimizer, or to other parameters.

    >>> optimizer, params = optax.polyak_sgd(), jnp.array([2.0])
    >>> def half_square(params):
    ...     return (params**2).sum() / 2
    >>> updates, _ = update_optimizer(optimizer, params, optimizer.init(params), params,
    ...                      value=half_square(params), grad=params, value_fn=half_square)
    >>> float(updates[0])    # value / norm**2 = 2 / 4 of the gradient
    -1.0
    """
    known = {
        "value": value,
        "grad": grad,
        "value_fn": value_fn,
        "obj_fn": value_fn,
        "grad_fn": lambda params, _: jax.grad(value_fn)(params),
    }
    _check_made_by(optimizer, opt_state, params)
    takes_extra = isinstance(optimizer, optax.GradientTransformationExtraArgs)
    takes_extra = takes_extra or _takes_keywords(optimizer.update)  # as optax.MultiSteps does
    first: Exception | None = None
    for names in EXTRA_ARG_SETS if takes_extra else ((),):
        extra = {name: known[name] for name in names}
        try:
            return optimizer.update(updates, opt_state, params, **extra)
        except Exception as error:  # raised below if no other set is accepted
            first = first or error
    assert first is not None
    first.add_note(
        "in the update of the optimizer, which received the gradients of a batch's mean loss and, "
        f"where it takes them, {', '.join(EXTRA_ARG_SETS[0])}; an optimizer that needs other "
        "arguments can be wrapped in an optax.GradientTransformationExtraArgs that computes them"
    )
    raise first


def keep_where(condition: jax.Array, before: TrainState, after: TrainState) -> TrainState:
    """Return `after` with the parameters, optimizer and model state of `before` where () holds."""
    params, opt_state, model_state = jax.tree.map(
        lambda old, new: old if new is old else jnp.where(condition, old, new),
        (before.params, before.opt_state, before.model_state),
        (after.params, after.opt_state, after.model_state),
    )
    return after.replace(params=params, opt_state=opt_state, model_state=model_state)


def _takes_keywords(function: Any) -> bool:
    parameters = inspect.signature(function).parameters.values()
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)


def _check_made_by(
    optimizer: optax.GradientTransformation, opt_state: PyTree, params: PyTree
) -> None:
    """Check structure and shapes; not dtypes, since the user may have cast parameters."""
    wanted = jax.eval_shape(optimizer.init, params)
    if has_same_structure(wanted, opt_state) and all(
        jnp.shape(one) == jnp.shape(other)
        for one, other in zip(jax.tree.leaves(wanted), jax.tree.leaves(opt_state), strict=True)
    ):
        return
    lines = list_differences(wanted, opt_state)
    shown = lines[:6] + [f"and {len(lines) - 6} more"] * (len(lines) > 6)
    raise ValueError(
        "state.opt_state must be one that this optimizer made for these parameters; got another's. "
        "Make the state with the same task, task.init(key, example), or replace it: "
        "state.replace(opt_state=task.optimizer.init(state.params)). The optimizer's state, and "
        "that of the given state:\n  " + "\n  ".join(shown)
    )


def _check_state(opt_state: PyTree, who: str) -> None:
    kind = optax.LookaheadState
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, kind))
    if any(isinstance(node, kind) for node in nodes):
        raise ValueError(
            f"{who} cannot train with optax.lookahead: it replaces the network's parameters by "
            "fast and slow ones (optax.LookaheadParams), which no network takes. Instead pass its "
            "inner optimizer and average: supervised(..., average=0.999), or "
            "optax.contrib.schedule_free"
        )
