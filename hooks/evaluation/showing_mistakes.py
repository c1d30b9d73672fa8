"""Show the examples of a split on which a classifier is most wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hooks.combining import Chain, chain
from hooks.metric_logging import check_writers, resume_writers, write_values
from hooks.writers.values import Image, Text, Value
from hooks.writers.writer import Writer
from trainer import TrainState
from trainer.checks.arguments import require_function, require_integer
from trainer.checks.pytrees import describe_leaf
from trainer.data.prompts.prompt_encoding import prepare_tokenizer
from trainer.data.source import Source, require_source
from trainer.host.exception_notes import annotate_errors
from trainer.losses.loss import require_entry
from trainer.losses.weighing import combine_weights
from trainer.state import PyTree, data_key, strip_host_fields


def show_mistakes(
    outputs: Callable[[TrainState, Any], Any],
    source: Source,
    *writers: Writer,
    count: int = 8,
    name: str = "val",
    tokenizer: Any = None,
) -> Chain:
    """Write the examples of a split on which a classifier is most wrong.

    At each `epoch` it evaluates the split once. Of the examples that are classified wrongly, it
    writes those of the smallest probability of their class, `mistakes/val/0` for the worst: a
    `Text` with the example's number in the split, its class, the predicted one and their
    probabilities, and an `Image` at `mistakes/val/0/image` where inputs are pictures. Training is
    not changed. Use it with a period: `every(5, show_mistakes(...))`.

    Args:
        outputs: `(state, batch) -> logits [batch, classes]`, such as `task.outputs`.
        source: of the split; its batches have `labels`, integer `[batch]`. Examples whose `weights`
            or `mask` are 0 do not count.
        writers: those of `log_metrics` or others. In `background` no other hook may use them.
        count: largest number of examples to write.
        name: of the split.
        tokenizer: writes inputs that are tokens, or the `tokens` of the inputs, as texts; as
            `show_samples` takes it.

    Raises:
        TypeError: an argument is something else.
        ValueError: there is no writer, or `count` is below 1; before training, the batches have no
            labels, the outputs are no logits, or the run has several processes.

    Pictures are inputs, or the `image` of the inputs, `[batch, height, width, channels]` with 1, 3
    or 4 channels. Those with other values than 0 to 1 are scaled to them.

    >>> from hooks.writers.console import Console
    >>> from trainer import data
    >>> _, val = data.digits(batch_size=64)
    >>> print(show_mistakes(lambda state, batch: batch["inputs"][:, 0, :, 0], val, Console()))
    event  stage    hook                     reads  writes
    start  observe  show_mistakes/val/start
    epoch  observe  show_mistakes/val
    """
    who = "show_mistakes"
    require_function(f"{who} takes outputs, which", outputs, "(state, batch) -> logits")
    require_source(source, who, "evaluation")
    require_integer("count", count, 1)
    if not writers:
        raise ValueError(f"{who} needs a writer: {who}(task.outputs, val, hooks.Console())")
    check_writers(who, writers)
    decode = None if tokenizer is None else prepare_tokenizer(tokenizer, who).decode
    feed, name = source.evaluation(), f"{who}/{name}"
    tag = name.replace(who, "mistakes")

    @jax.jit
    def find(state: TrainState, piece: Any, row: Any) -> dict[str, Any]:
        batch, mask = feed.batch(piece, row)
        return _find_worst(outputs(state, batch), batch, mask, count)

    def read(state: TrainState, metrics: Mapping[str, float]) -> dict[str, Value]:
        device = strip_host_fields(jax.tree.map(jnp.asarray, strip_host_fields(state)))
        found, key = [], data_key(device)
        for piece, _ in feed.pieces(device, None, None):
            rows = jax.tree.map(np.asarray, feed.rows(piece, key))
            steps = range(len(jax.tree.leaves(rows)[0]))
            found += [find(device, piece, jax.tree.map(lambda r, n=n: r[n], rows)) for n in steps]
        values: dict[str, Value] = {}
        for number, mistake in enumerate(_merge(jax.device_get(found), count)):
            values |= _to_values(f"{tag}/{number}", mistake, decode)
        return values

    def check(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        if jax.process_count() > 1:
            raise ValueError(
                f"{name} reads the split on one process, and this run has {jax.process_count()}: "
                "leave it out, or run it in an evaluator"
            )
        with annotate_errors(f"in checking hook {name!r} before training"):
            device = strip_host_fields(state)
            rows = jax.eval_shape(feed.rows, feed.example, data_key(state))
            row = jax.tree.map(lambda r: jax.ShapeDtypeStruct(r.shape[1:], r.dtype), rows)
            jax.eval_shape(find, device, feed.example, row)
        return resume.function(state, metrics)

    resume, writing = resume_writers(name, writers), write_values(name, writers, read)
    return chain(dataclasses.replace(resume, function=check), writing)


def _find_worst(logits: Any, batch: Any, mask: jax.Array, count: int) -> dict[str, Any]:
    """Return the worst mistakes of a batch, and how many examples it has."""
    labels = require_entry("show_mistakes", batch, "labels")
    if (
        getattr(logits, "ndim", 0) != 2
        or labels.shape != logits.shape[:1]
        or not jnp.issubdtype(labels.dtype, jnp.integer)
    ):
        raise ValueError(
            "show_mistakes needs logits [batch, classes] and integer labels [batch]; got "
            f"{describe_leaf(logits)} and {describe_leaf(labels)}"
        )
    weights = combine_weights("show_mistakes", batch, labels.shape, "[batch]")
    predicted = logits.argmax(1)
    wrong = mask & (predicted != labels)
    if weights is not None:
        wrong &= weights > 0
    logs = jax.nn.log_softmax(logits.astype(jnp.float32))
    of_label, of_predicted = (
        jnp.take_along_axis(logs, which[:, None], 1)[:, 0] for which in (labels, predicted)
    )
    losses = jnp.where(jnp.isnan(of_label), jnp.inf, -of_label)
    worst, places = jax.lax.top_k(jnp.where(wrong, losses, -jnp.inf), min(count, len(losses)))
    examples = {
        "loss": worst,
        "number": jnp.cumsum(mask)[places] - 1,
        "label": labels[places],
        "predicted": predicted[places],
        "of_label": jnp.exp(of_label[places]),
        "of_predicted": jnp.exp(of_predicted[places]),
        "inputs": jax.tree.map(lambda x: x[places], batch["inputs"]),
    }
    return {"size": mask.sum(), "examples": examples}


def _merge(batches: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Return the worst mistakes of all batches, the worst first, numbered in the split."""
    before, mistakes = 0, []
    for batch in batches:
        examples = batch["examples"]
        for place, loss in enumerate(examples["loss"]):
            if loss > -np.inf:
                mistake = jax.tree.map(lambda x, place=place: x[place], examples)
                mistakes.append(mistake | {"number": before + int(mistake["number"])})
        before += int(batch["size"])
    return sorted(mistakes, key=lambda mistake: -mistake["loss"])[:count]


def _to_values(
    tag: str, mistake: Mapping[str, Any], decode: Callable[[list[int]], str] | None
) -> dict[str, Value]:
    said = (
        f"example {mistake['number']}: class {mistake['label']} ({mistake['of_label']:.1%}), "
        f"predicted {mistake['predicted']} ({mistake['of_predicted']:.1%})"
    )
    inputs = mistake["inputs"]
    if decode is not None:
        tokens = _select(inputs, "tokens")
        if tokens is not None and tokens.ndim == 1 and tokens.dtype.kind in "iu":
            said = f"{said}\n{decode(tokens.tolist())}"
    values: dict[str, Value] = {tag: Text(said)}
    pixels = _select(inputs, "image")
    if pixels is not None and pixels.ndim == 3 and pixels.shape[2] in (1, 3, 4):
        values[f"{tag}/image"] = Image(_scale(pixels))
    return values


def _select(inputs: PyTree, name: str) -> Any:
    return inputs.get(name) if isinstance(inputs, Mapping) else inputs


def _scale(pixels: np.ndarray) -> np.ndarray:
    """Scale pixels to 0 to 1, unless they are that already, or bytes."""
    if pixels.dtype == np.uint8:
        return pixels
    pixels = pixels.astype(np.float32)
    low, high = float(pixels.min()), float(pixels.max())
    if low >= 0 and high <= 1:
        return pixels
    return (pixels - low) / ((high - low) or 1.0)
