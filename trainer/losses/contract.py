"""What a loss is, and what it may carry besides."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from trainer.names import among

Loss = Callable[[Any, Mapping[str, Any]], dict[str, Any]]
"""`(outputs, batch) -> {name: values}`, jittable; `loss` is what the optimizer minimises.

Values are `[batch]`, or pairs (values, weights) of `[batch]` each where examples weigh differently:
the mean is then that of all tokens, say, and not of the sequences' means. Weights must not depend
on the outputs. As attributes of the function it may carry

- `check(outputs, batch)`: raises where host arrays do not suit the task, given the shape and dtype
  of one example's outputs; asked before training, and of streams for every superbatch,
- `finalize(means) -> {name: value}`: what is no mean, such as a perplexity, of floats by name; done
  on the host, once an epoch, of training and evaluation alike,
- `at(step) -> loss`: the loss at an optimizer step, where it depends on it; asked in its place.
"""


def attribute(loss: Loss, name: str) -> Any:
    """Give what a loss carries, also one with settings (`functools.partial`); None if nothing.

    >>> from trainer import losses
    >>> smoothed = functools.partial(losses.language_modeling, z_loss=1e-4)
    >>> attribute(smoothed, "finalize")({"loss": 0.0})
    {'perplexity': 1.0, 'bits_per_character': 0.0}
    """
    return getattr(loss.func if isinstance(loss, functools.partial) else loss, name, None)


def loss_at(loss: Loss, step: Any) -> Loss:
    """Give the loss at an optimizer step, () int32: itself where it depends on none."""
    at = attribute(loss, "at")
    if at and isinstance(loss, functools.partial):
        return functools.partial(at(step), *loss.args, **loss.keywords)
    return at(step) if at else loss


def entry(task: str, batch: Mapping[str, Any], name: str) -> Any:
    """Give an array of a batch.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in batch:
        raise ValueError(f"{task} reads batch[{name!r}]; there is none{among(name, sorted(batch))}")
    return batch[name]


def require_logits(task: str, outputs: Any, form: str, leading: tuple[int, ...]) -> None:
    """Check that outputs are floating logits with these axes and one of classes.

    Args:
        task: for the message.
        outputs: of the network.
        form: of the axes, for the message: `[batch, classes]`.
        leading: their sizes, but for the last.

    Raises:
        ValueError: they are not.
    """
    shape = getattr(outputs, "shape", None)
    if shape is None or shape[:-1] != leading or len(shape) != len(leading) + 1:
        got = list(shape) if shape is not None else type(outputs).__name__
        wanted = ", ".join([*map(str, leading), form.rstrip("]").rpartition(" ")[2]])
        raise ValueError(f"{task} needs logits {form} = [{wanted}] from the network; got {got}")
    if not jnp.issubdtype(outputs.dtype, jnp.floating):
        raise ValueError(f"{task} needs floating logits; got {outputs.dtype}")


def check_range(what: str, values: np.ndarray, count: int, things: str) -> None:
    """Check host integers against the number of things that they name.

    Raises:
        ValueError: one is below 0 or not below `count`.
    """
    if not values.size:
        return
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= count:
        raise ValueError(
            f"{what} must be between 0 and {count - 1}, as the network has {count} {things}; "
            f"got {what} between {low} and {high}"
        )
