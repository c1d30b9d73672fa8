"""What a loss is, and what it may carry besides."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trainer.checks.arguments import describe_value
from trainer.checks.suggestions import suggest_and_list, suggest_name
from trainer.host.exception_notes import annotate_errors

Loss = Callable[[Any, Mapping[str, Any]], dict[str, Any]]
"""`(outputs, batch) -> {name: values}`, jittable; `loss` is what the optimizer minimises.

Values are `[batch]`, or pairs (values, weights) of `[batch]` each where examples weigh differently:
the mean is then that of all tokens, say, and not of the sequences' means. Weights must not depend
on the outputs. As attributes of the function it may carry

- `check(outputs, batch)`: raises where host arrays do not suit the task, given the shape and dtype
  of one example's outputs; asked before training, and of streams for every superbatch,
- `finalize(means) -> {name: value}`: what is no mean, such as a perplexity, of floats by name; done
  on the host, once an epoch, of training and evaluation alike,
- `at(step) -> loss`: the loss at an optimizer step, where it depends on it; asked in its place,
- `whole_batch`: True where an example's values depend on the others of its batch, as negatives of a
  contrastive loss do: evaluation then gives it the last batch at its own size, and micro-batches
  (`accumulate`) are refused. Before a run, one that does not say so is found out.
"""


def get_loss_attribute(loss: Loss, name: str) -> Any:
    """Give what a loss carries, also one with settings (`functools.partial`); None if nothing.

    >>> from trainer import losses
    >>> smoothed = functools.partial(losses.language_modeling, z_loss=1e-4)
    >>> get_loss_attribute(smoothed, "finalize")({"loss": 0.0})
    {'perplexity': 1.0, 'bits_per_character': 0.0}
    """
    return getattr(loss.func if isinstance(loss, functools.partial) else loss, name, None)


def loss_at(loss: Loss, step: Any) -> Loss:
    """Give the loss at an optimizer step, () int32: itself where it depends on none."""
    at = get_loss_attribute(loss, "at")
    if at and isinstance(loss, functools.partial):
        return functools.partial(at(step), *loss.args, **loss.keywords)
    return at(step) if at else loss


def get_loss_name(loss: Loss) -> str:
    """Give the name that messages call a loss by.

    >>> from trainer import losses
    >>> get_loss_name(functools.partial(losses.language_modeling, z_loss=1e-4))
    'language_modeling'
    """
    plain = loss.func if isinstance(loss, functools.partial) else loss
    return getattr(plain, "__name__", type(plain).__name__)


def evaluate_loss(loss: Loss, step: Any, outputs: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Ask a loss at an optimizer step, and check what it gives: in training as in evaluation.

    Args:
        loss: to ask.
        step: () int32.
        outputs: of the network.
        batch: arrays `[batch, ...]`.

    Raises:
        TypeError: it gives no dict.
        ValueError: it reads what is not there, gives no `loss`, or gives values or weights that are
            not one number an example.
    """
    name = get_loss_name(loss)
    try:
        with annotate_errors(f"in the loss {name!r}, which is called with (outputs, batch)"):
            values = loss_at(loss, step)(outputs, batch)
    except KeyError as error:
        missing = error.args[0] if error.args else None
        known_names = {n for x in (batch, outputs) if isinstance(x, Mapping) for n in x}
        if not isinstance(missing, str) or missing in known_names:
            raise
        known = f"the batch has {', '.join(sorted(batch))}"
        if isinstance(outputs, Mapping):
            known += f", and the network's outputs {', '.join(sorted(outputs))}"
        raise ValueError(
            f"the loss {name!r} reads {missing!r}, which is not there: {known}."
            f"{suggest_name(missing, known_names)}"
        ) from error
    if not isinstance(values, Mapping):
        raise TypeError(
            f"the loss {name!r} must give a dict of values [batch] by name, such as "
            f'{{"loss": values}}; got {_form(values)}'
        )
    if "loss" not in values:
        raise ValueError(
            f"the loss {name!r} must give 'loss' to minimise; it gave {sorted(values)}"
        )
    leaves = jax.tree.leaves(batch)
    for key, found in values.items():
        check_per_example(f"the loss {name!r}", key, found, len(leaves[0]) if leaves else 0)
    kind = _part(values["loss"], 0).dtype
    if not jnp.issubdtype(kind, jnp.floating):
        raise ValueError(
            f"the loss {name!r} must give 'loss' as floating numbers, to derive by; got {kind}"
        )
    return dict(values)


def check_per_example(who: str, name: str, values: Any, examples: int) -> None:
    """Check that values, or a pair (values, weights), are one number an example, `[batch]`.

    Raises:
        ValueError: they are not.
    """
    parts = values if isinstance(values, tuple) else (values,)
    shapes = [getattr(part, "shape", None) for part in parts]
    if len(parts) <= 2 and all(shape == (examples,) for shape in shapes):
        return
    if len(parts) > 2:
        remedy = "a pair is (values, weights)"
    elif () in shapes or None in shapes:
        remedy = "do not average over the batch, which is done by weight, and over all batches"
    elif (examples, examples) in shapes:
        remedy = (
            f"a [{examples}] and a [{examples}, 1] were broadcast to each other: give both one "
            "shape, such as by array[:, 0]"
        )
    else:
        remedy = "average over the axes after the first"
    raise ValueError(
        f"{who} must give {name!r} per example, [{examples}]; got {_form(values)}: {remedy}"
    )


def _part(values: Any, place: int) -> Any:
    return values[place] if isinstance(values, tuple) else values


def _form(values: Any) -> str:
    """Say what something is, briefly: a shape where it has one."""
    if isinstance(values, tuple):
        return f"({', '.join(map(_form, values))})"
    shape = getattr(values, "shape", None)
    return type(values).__name__ if shape is None else str(list(shape))


def require_entry(task: str, batch: Mapping[str, Any], name: str) -> Any:
    """Give an array of a batch.

    Raises:
        TypeError: the batch is no dict.
        ValueError: there is none of this name.
    """
    if not isinstance(batch, Mapping):
        raise TypeError(
            f"{task} reads batch[{name!r}], and a batch is a dict of arrays; got "
            f"{describe_value(batch)}: of a source, give its batches one by one"
        )
    if name not in batch:
        raise ValueError(
            f"{task} reads batch[{name!r}]; there is none{suggest_and_list(name, sorted(batch))}"
        )
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
