"""What a loss is: a function, and what training must know of it besides."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from trainer.checks.arguments import describe_value
from trainer.checks.suggestions import suggest_and_list, suggest_name
from trainer.host.exception_notes import annotate_errors

LossFunction = Callable[..., dict[str, Any]]
"""`(outputs, batch) -> {name: values}`, jittable; `loss` is what the optimizer minimises.

Values are `[batch]`, or pairs (values, weights) of `[batch]` each where examples weigh differently:
the mean is then that of all tokens, say, and not of the sequences' means. Weights must not depend
on the outputs. A plain function is a loss; a `Loss` is one that declares more.
"""


@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss function with what training must know of it; it is called like the function.

    As a decorator: `@functools.partial(losses.Loss, whole_batch=True)`. Settings are bound to it as
    to a function, by `functools.partial`.

    >>> def squared(outputs, batch):
    ...     return {"loss": (outputs - batch["targets"]) ** 2}
    >>> loss = Loss(squared, finalize=lambda means: {"root": means["loss"] ** 0.5})
    >>> loss(jnp.array([3.0]), {"targets": jnp.array([1.0])}), loss.finalize({"loss": 4.0})
    ({'loss': Array([4.], dtype=float32)}, {'root': 2.0})
    """

    function: LossFunction
    _: dataclasses.KW_ONLY
    check: Callable[[Any, Mapping[str, Any]], None] | None = None
    """`(outputs, batch)`: raises where host arrays do not suit the task, given the shape and dtype
    of one example's outputs; called before training, and for every superbatch of a stream."""
    finalize: Callable[[Mapping[str, float]], Mapping[str, float]] | None = None
    """`(means) -> {name: value}`: what follows from the means but is no mean itself, such as a
    perplexity; computed on the host once an epoch, in training and evaluation alike."""
    takes_step: bool = False
    """Whether the function depends on the optimizer step: it is then called with `step=`, ()."""
    whole_batch: bool = False
    """Whether an example's values depend on the other examples of its batch, as negatives of a
    contrastive loss do: evaluation then passes the last batch at its own size, and micro-batches
    (`accumulate`) are refused. A loss that fails to declare it is detected before training."""

    def __post_init__(self) -> None:
        shown = ("__doc__", "__module__")  # for `help` and the function's own examples
        vars(self).update({name: getattr(self.function, name, None) for name in shown})

    def __call__(self, outputs: Any, batch: Mapping[str, Any], **settings: Any) -> dict[str, Any]:
        """Call the function."""
        return self.function(outputs, batch, **settings)

    def at_step(self, step: Any, outputs: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Call the function at an optimizer step, () int32."""
        return self.function(outputs, batch, **({"step": step} if self.takes_step else {}))

    @property
    def __wrapped__(self) -> LossFunction:
        """The function, for `inspect`."""
        return self.function

    @property
    def name(self) -> str:
        """What messages and metrics call the loss: the name of its function."""
        plain = self.function
        plain = plain.func if isinstance(plain, functools.partial) else plain
        return getattr(plain, "__name__", type(plain).__name__)


def as_loss(loss: LossFunction) -> Loss:
    """Return a loss as a record, also one with settings bound to it (`functools.partial`).

    >>> from trainer import losses
    >>> smoothed = as_loss(functools.partial(losses.language_modeling, z_loss=1e-4))
    >>> smoothed.name, smoothed.finalize({"loss": 0.0})
    ('language_modeling', {'perplexity': 1.0, 'bits_per_character': 0.0})
    """
    if isinstance(loss, functools.partial) and isinstance(loss.func, Loss):
        bound = functools.partial(loss.func.function, *loss.args, **loss.keywords)
        return dataclasses.replace(loss.func, function=bound)
    return loss if isinstance(loss, Loss) else Loss(loss)


def evaluate_loss(loss: Loss, step: Any, outputs: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Call a loss at an optimizer step, () int32, and check its values, also in evaluation.

    Raises:
        TypeError: it returns no dict.
        ValueError: it reads an entry that is missing, returns no `loss`, or returns values or
            weights that are not one number per example.
    """
    name = loss.name
    try:
        with annotate_errors(f"in the loss {name!r}, which is called with (outputs, batch)"):
            values = loss.at_step(step, outputs, batch)
    except KeyError as error:
        missing = error.args[0] if error.args else None
        known_names = {n for x in (batch, outputs) if isinstance(x, Mapping) for n in x}
        if not isinstance(missing, str) or missing in known_names:
            raise
        known = f"the batch has {', '.join(sorted(batch))}"
        if isinstance(outputs, Mapping):
            known += f", and the network's outputs {', '.join(sorted(outputs))}"
        raise ValueError(
            f"the loss {name!r} reads {missing!r}, which is missing: {known}."
            f"{suggest_name(missing, known_names)}"
        ) from error
    if not isinstance(values, Mapping):
        raise TypeError(
            f"the loss {name!r} must return a dict of values [batch] by name, such as "
            f'{{"loss": values}}; got {_describe(values)}'
        )
    if "loss" not in values:
        raise ValueError(
            f"the loss {name!r} must return 'loss' to minimise; it returned {sorted(values)}"
        )
    leaves = jax.tree.leaves(batch)
    for key, found in values.items():
        check_per_example(f"the loss {name!r}", key, found, len(leaves[0]) if leaves else 0)
    first = values["loss"][0] if isinstance(values["loss"], tuple) else values["loss"]
    kind = first.dtype
    if not jnp.issubdtype(kind, jnp.floating):
        raise ValueError(f"the loss {name!r} must return 'loss' as floating numbers; got {kind}")
    return dict(values)


def check_per_example(who: str, name: str, values: Any, examples: int) -> None:
    """Raise ValueError unless values, or a pair (values, weights), are one per example."""
    parts = values if isinstance(values, tuple) else (values,)
    shapes = [getattr(part, "shape", None) for part in parts]
    if len(parts) <= 2 and all(shape == (examples,) for shape in shapes):
        return
    if len(parts) > 2:
        remedy = "a pair is (values, weights)"
    elif () in shapes or None in shapes:
        remedy = "do not average over the batch: the trainer averages by weight, over all batches"
    elif (examples, examples) in shapes:
        remedy = (
            f"a [{examples}] and a [{examples}, 1] were broadcast to each other: give both one "
            "shape, such as by array[:, 0]"
        )
    else:
        remedy = "average over the axes after the first"
    raise ValueError(
        f"{who} must return {name!r} per example, [{examples}]; got {_describe(values)}: {remedy}"
    )


def _describe(values: Any) -> str:
    """Describe a value briefly: by its shape where it has one."""
    if isinstance(values, tuple):
        return f"({', '.join(map(_describe, values))})"
    shape = getattr(values, "shape", None)
    return type(values).__name__ if shape is None else str(list(shape))


def require_entry(task: str, batch: Mapping[str, Any], name: str) -> Any:
    """Return the array of a batch that has this name.

    Raises:
        TypeError: the batch is no dict.
        ValueError: it has no such array.
    """
    if not isinstance(batch, Mapping):
        raise TypeError(
            f"{task} reads batch[{name!r}], and a batch is a dict of arrays; got "
            f"{describe_value(batch)}: pass the batches of a source one by one"
        )
    if name not in batch:
        raise ValueError(
            f"{task} reads batch[{name!r}]; there is none{suggest_and_list(name, sorted(batch))}"
        )
    return batch[name]


def require_logits(task: str, outputs: Any, form: str, leading: tuple[int, ...]) -> None:
    """Raise ValueError unless outputs are floating logits with these leading axes and one more.

    `form` is that of all axes, for the message: `[batch, classes]`.
    """
    shape = getattr(outputs, "shape", None)
    if shape is None or shape[:-1] != leading or len(shape) != len(leading) + 1:
        got = list(shape) if shape is not None else type(outputs).__name__
        wanted = ", ".join([*map(str, leading), form.rstrip("]").rpartition(" ")[2]])
        raise ValueError(f"{task} needs logits {form} = [{wanted}] from the network; got {got}")
    if not jnp.issubdtype(outputs.dtype, jnp.floating):
        raise ValueError(f"{task} needs floating logits; got {outputs.dtype}")
