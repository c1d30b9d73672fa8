"""Finding out before training whether what is measured of an example depends on its neighbours."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trainer.checks.pytrees import format_path
from trainer.losses.loss import Loss, evaluate_loss
from trainer.phases.row_mixing import can_mix_rows
from trainer.state import PyTree, TrainState, strip_host_fields

log = logging.getLogger("entracte")

QUICK: dict[str, str | bool] = {
    "xla_backend_optimization_level": "0",
    "xla_llvm_disable_expensive_passes": True,
}
"""How to compile what runs twice: in half the time."""

REMEDY = (
    "compute each example's values and weights from its own outputs alone, or declare "
    "`losses.Loss({name}, whole_batch=True)`: an evaluation's last batch is then computed at its "
    "own size, and accumulate is refused"
)


Measure = Callable[[TrainState, Any], Mapping[str, Any]]
"""`(state, batch) -> {name: values}`."""

Trial = Callable[[TrainState, Any], None]
"""`(state, batch of real examples)`: raises where an example is not measured alone."""


def make_measure_trial(loss: Loss, outputs: Callable[..., Any], measure: Measure) -> Trial:
    """Make the trial of a task's measure, which its phases do once for each form of a batch.

    The network is compiled for it only where its operations may mix examples: compiling every one
    once more would take a tenth of a run's start.

    Args:
        loss: of the task.
        outputs: `(state, inputs)` -> the network's outputs in evaluation.
        measure: of the task.
    """

    def alone(state: TrainState, batch: Any) -> None:
        shapes = jax.eval_shape(outputs, strip_host_fields(state), batch["inputs"])
        why = "evaluation fills up the last batch with copies, which must not count"
        require_independent_loss(loss, state, shapes, batch, why)
        if jax.process_count() == 1 and can_mix_rows(
            outputs, strip_host_fields(state), batch["inputs"]
        ):
            require_independent_measure(measure, state, batch)

    return alone


def make_accumulation_trial(loss: Loss, outputs: Callable[..., Any], accumulate: int) -> Trial:
    """Make the trial of a step that gives the loss a part of a batch at a time.

    It says so where the network makes statistics of batches, which are then those of the parts.
    """

    def alone(state: TrainState, batch: Any) -> None:
        shapes = jax.eval_shape(outputs, strip_host_fields(state), batch["inputs"])
        why = f"accumulate={accumulate} gives it a part of a batch at a time"
        require_independent_loss(loss, state, shapes, batch, why)
        if statistics := find_batch_statistics(state.model_state):
            size = len(jax.tree.leaves(batch)[0])
            log.info(
                "accumulate=%d: what the network keeps of batches (%s) is that of micro-batches of "
                "%d examples, not of the batch of %d",
                *(accumulate, ", ".join(statistics[:2]), size // accumulate, size),
            )

    return alone


def find_batch_statistics(model_state: PyTree) -> list[str]:
    """Name what floating numbers a network keeps, as batch normalisation does.

    >>> find_batch_statistics({"norm": {"mean": jnp.zeros(3)}, "count": jnp.int32(0)})
    ['norm/mean']
    """
    leaves = jax.tree_util.tree_leaves_with_path(model_state)
    return [format_path(p) for p, leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]


def require_independent_loss(
    loss: Loss, state: TrainState, outputs: Any, batch: Any, why: str
) -> None:
    """Check that a loss gives an example the same values whatever stands beside it.

    It is asked twice for real examples and outputs made up, of which half are changed. That costs
    neither a run nor a compilation of the network.

    Args:
        loss: to ask.
        state: for its step.
        outputs: shapes and dtypes of the network's for the batch.
        batch: of real examples.
        why: what it would do to the others, for the message: "evaluation fills up ...".

    Raises:
        ValueError: it does not.
    """

    def ask(step: Any, outputs: Any, batch: Any) -> dict[str, Any]:
        return evaluate_loss(loss, step, outputs, batch)

    random, step = np.random.default_rng(0), np.asarray(state.step)
    batch = jax.tree.map(np.asarray, batch)
    tries = []
    for draw in (random.standard_normal, random.random):  # logits; probabilities and the like
        drawn = jax.tree.map(lambda leaf, draw=draw: _drawn(leaf, draw), outputs)
        tries.append(((step, drawn, batch), (step, *_padded((drawn, batch)))))
    if names := _changed(ask, tries, batch):
        name = loss.name
        raise ValueError(
            f"the loss {name!r} gives an example other values ({', '.join(names)}) where other "
            f"examples of its batch change, and {why}: {REMEDY.format(name=name)}"
        )


def require_independent_measure(measure: Measure, state: TrainState, batch: Any) -> None:
    """Check that a measure gives an example the same values whatever stands beside it.

    Args:
        measure: `(state, batch) -> {name: values}`.
        state: to measure.
        batch: of real examples.

    Raises:
        ValueError: it does not.
    """
    device, batch = strip_host_fields(state), jax.tree.map(np.asarray, batch)
    if names := _changed(measure, [((device, batch), (device, _padded(batch)))], batch):
        raise ValueError(
            f"an example is measured otherwise ({', '.join(names)}) where other examples of its "
            "batch change, and evaluation fills up the last batch with copies: a network mixes "
            "examples in evaluation, as batch normalisation does in training mode, or the measure "
            "does; mend it, or say `whole_batch = True` of the loss, or of the measure: the last "
            "batch is then computed at its own size"
        )


def _changed(
    function: Callable[..., Mapping[str, Any]], tries: list[tuple[Any, Any]], batch: Any
) -> list[str]:
    """Name what changes of the first half of the examples from one to the other of any pair."""
    half = len(jax.tree.leaves(batch)[0]) // 2
    if half == 0:
        return []

    def kept(*given: Any) -> PyTree:
        values = function(*given)
        if not isinstance(values, Mapping):  # which the phase says, and better
            return {}
        return jax.tree.map(lambda x: x[:half].astype(jnp.float32), dict(values))

    compiled = jax.jit(kept).lower(*tries[0][0]).compile(compiler_options=QUICK)
    changed: dict[str, None] = {}
    for pair in tries:
        ours, theirs = (jax.tree.map(np.asarray, compiled(*given)) for given in pair)
        changed |= {name: None for name in ours if not _alike(ours[name], theirs[name])}
    return list(changed)


def _alike(ours: Any, theirs: Any) -> bool:
    """Compare values, or pairs with weights: one program gives the same bits, or nearly so."""
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return all(np.allclose(a, b, rtol=1e-3, atol=1e-5, equal_nan=True) for a, b in pairs)


def _padded(tree: PyTree) -> PyTree:
    """Put copies of the last example of the first half in the place of the second half."""

    def filled(array: Any) -> Any:
        half = len(array) // 2
        return array[np.minimum(np.arange(len(array)), max(half - 1, 0))]

    return jax.tree.map(filled, tree)


def _drawn(leaf: Any, draw: Callable[[tuple[int, ...]], np.ndarray]) -> np.ndarray:
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return np.zeros(leaf.shape, leaf.dtype)
    drawn = draw(leaf.shape)
    drawn[len(drawn) // 2 :] *= 4  # so that a largest one is rather among those that change
    return drawn.astype(leaf.dtype)
