"""Checks before training that the values of an example do not depend on the rest of its batch."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trainer.checks.pytrees import format_path
from trainer.data.source import Check
from trainer.losses.loss import Loss, evaluate_loss
from trainer.phases.batch_functions import MeasureFunction
from trainer.phases.buffers.passed_leaves import find_unchanged
from trainer.phases.jaxprs import can_mix_rows
from trainer.state import PyTree, TrainState, strip_host_fields

log = logging.getLogger("entracte")

QUICK: dict[str, str | bool] = {
    "xla_backend_optimization_level": "0",
    "xla_llvm_disable_expensive_passes": True,
}
"""Compiler options for a function that runs twice: compilation takes half the time."""

REMEDY = (
    "compute each example's values and weights from its own outputs alone, or declare "
    "`losses.Loss({name}, whole_batch=True)`: an evaluation's last batch is then computed at its "
    "own size, and accumulate is refused"
)


def make_measure_trial(loss: Loss, outputs: Callable[..., Any], measure: MeasureFunction) -> Check:
    """Build the trial of a task's measure, which its phases run once per shape of a batch.

    It compiles the network only if its operations may mix examples: compiling each network again
    would take a tenth of a run's start. `outputs` is `(state, inputs)` -> the network's outputs in
    evaluation.
    """

    def check(state: TrainState, batch: Any) -> None:
        device = strip_host_fields(state)
        shapes = jax.eval_shape(outputs, device, batch["inputs"])
        why = "evaluation fills up the last batch with copies, which must not count"
        require_independent_loss(loss, state, shapes, batch, why)
        if jax.process_count() == 1 and can_mix_rows(outputs, device, batch["inputs"]):
            require_independent_measure(measure, state, batch)

    return check


def make_accumulation_trial(
    loss: Loss,
    outputs: Callable[..., Any],
    statistics: Callable[[TrainState, Any], PyTree],
    accumulate: int,
) -> Check:
    """Build the trial of a step that passes micro-batches to the loss.

    It logs a notice if the network keeps batch statistics, which are then those of micro-batches:
    `statistics` is `(state, batch)` -> the model state after a pass in training, which leaves other
    variables, such as the base under adapters, as they are.
    """

    def check(state: TrainState, batch: Any) -> None:
        device = strip_host_fields(state)
        shapes = jax.eval_shape(outputs, device, batch["inputs"])
        why = f"accumulate={accumulate} gives it a part of a batch at a time"
        require_independent_loss(loss, state, shapes, batch, why)
        if names := _list_changed(statistics, device, batch):
            size = len(jax.tree.leaves(batch)[0])
            log.info(
                "accumulate=%d: what the network keeps of batches (%s) is that of micro-batches of "
                "%d examples, not of the batch of %d",
                *(accumulate, ", ".join(names[:2]), size // accumulate, size),
            )

    return check


def find_batch_statistics(model_state: PyTree) -> list[str]:
    """List the floating-point leaves of a network's state, such as those of batch normalisation.

    >>> find_batch_statistics({"norm": {"mean": jnp.zeros(3)}, "count": jnp.int32(0)})
    ['norm/mean']
    """
    leaves = jax.tree_util.tree_leaves_with_path(model_state)
    return [format_path(p) for p, leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]


def _list_changed(
    statistics: Callable[[TrainState, Any], PyTree], state: TrainState, batch: Any
) -> list[str]:
    """List the floating-point leaves of the model state that a pass in training changes."""
    if not find_batch_statistics(state.model_state):
        return []

    def update(model_state: PyTree, state: TrainState, batch: Any) -> PyTree:
        return statistics(state.replace(model_state=model_state), batch)

    unchanged = find_unchanged(update, state.model_state, state, batch)
    keep = jax.tree.map(lambda leaf, same: None if same else leaf, state.model_state, unchanged)
    return find_batch_statistics(keep)


def require_independent_loss(
    loss: Loss, state: TrainState, outputs: Any, batch: Any, why: str
) -> None:
    """Check that the loss of an example does not depend on the other examples of its batch.

    The loss is computed twice, on real examples and random outputs, of which half are changed the
    second time. The network is neither run nor compiled: `outputs` are shapes and dtypes. `why` the
    values must be independent is for the message: "evaluation fills up ...".

    Raises:
        ValueError: it depends on them.
    """
    compute = functools.partial(evaluate_loss, loss)
    random, step = np.random.default_rng(0), np.asarray(state.step)
    batch = jax.tree.map(np.asarray, batch)
    tries = []
    for draw in (random.standard_normal, random.random):  # logits; probabilities and the like
        drawn = jax.tree.map(lambda leaf, draw=draw: _drawn(leaf, draw), outputs)
        tries.append(((step, drawn, batch), (step, *_padded((drawn, batch)))))
    if names := _changed(compute, tries, batch):
        name = loss.name
        raise ValueError(
            f"the loss {name!r} gives an example other values ({', '.join(names)}) where other "
            f"examples of its batch change, and {why}: {REMEDY.format(name=name)}"
        )


def require_independent_measure(measure: MeasureFunction, state: TrainState, batch: Any) -> None:
    """Check that a measure of an example does not depend on the other examples of its batch.

    Raises:
        ValueError: it depends on them.
    """
    device, batch = strip_host_fields(state), jax.tree.map(np.asarray, batch)
    if names := _changed(measure, [((device, batch), (device, _padded(batch)))], batch):
        raise ValueError(
            f"an example is measured otherwise ({', '.join(names)}) where other examples of its "
            "batch change, and evaluation fills up the last batch with copies: a network mixes "
            "examples in evaluation, as batch normalisation does in training mode, or the measure "
            "does; mend it, or declare `whole_batch=True` of the loss, or of the measure by "
            "trainer.Measure(measure, whole_batch=True): the last batch is then computed at its "
            "own size"
        )


def _changed(
    function: Callable[..., Mapping[str, Any]], tries: list[tuple[Any, Any]], batch: Any
) -> list[str]:
    """List the values of the first half of the examples that differ within a pair of arguments."""
    half = len(jax.tree.leaves(batch)[0]) // 2
    if half == 0:
        return []

    def kept(*given: Any) -> PyTree:
        values = function(*given)
        if not isinstance(values, Mapping):  # the phase raises a better error
            return {}
        return jax.tree.map(lambda x: x[:half].astype(jnp.float32), dict(values))

    compiled = jax.jit(kept).lower(*tries[0][0]).compile(compiler_options=QUICK)
    changed: dict[str, None] = {}
    for pair in tries:
        ours, theirs = (jax.tree.map(np.asarray, compiled(*given)) for given in pair)
        changed |= {name: None for name in ours if not _alike(ours[name], theirs[name])}
    return list(changed)


def _alike(ours: Any, theirs: Any) -> bool:
    """Return whether values, or pairs with weights, agree to rounding."""
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return all(np.allclose(a, b, rtol=1e-3, atol=1e-5, equal_nan=True) for a, b in pairs)


def _padded(tree: PyTree) -> PyTree:
    """Replace the second half by copies of the last example of the first half."""

    def fill(array: Any) -> Any:
        return array[np.minimum(np.arange(len(array)), max(len(array) // 2 - 1, 0))]

    return jax.tree.map(fill, tree)


def _drawn(leaf: Any, draw: Callable[[tuple[int, ...]], np.ndarray]) -> np.ndarray:
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return np.zeros(leaf.shape, leaf.dtype)
    drawn = draw(leaf.shape)
    drawn[len(drawn) // 2 :] *= 4  # so that the largest is likely among those that change
    return drawn.astype(leaf.dtype)
