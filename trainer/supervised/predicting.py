"""Prediction: a network's outputs for a whole split, example by example."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trainer.checks.arguments import describe_value
from trainer.checks.pytrees import format_path
from trainer.data.iteration.unpadded import unpad_feed
from trainer.data.source import Source, require_source
from trainer.phases.compilation import get_shared_cache, read_jax_settings
from trainer.placement.gathering import gather
from trainer.state import PyTree, TrainState, attach_host_fields, data_key, strip_host_fields
from trainer.supervised.network_checks import check_network, check_pair


def predict(
    state: TrainState, network: Any, source: Source, *, whole_batch: bool = False
) -> PyTree:
    """Compute a network's outputs for every example of a split, in order.

    The outputs go to the host batch by batch, so the device holds two batches of them at a time. A
    smaller last batch is padded and its outputs are cut, so one compiled function serves all
    batches; it is compiled once per network and shapes, for any number of calls. On several
    processes all must call it, and each gets all outputs.

    Args:
        state: with the parameters; unchanged.
        network: a pair (init, apply) as `models.Network` describes, called with `train=False`; or a
            jittable function `(state, batch) -> outputs`, such as `task.outputs` (in the precision
            of the task).
        source: of batches, read in order; only `inputs` are needed.
        whole_batch: whether outputs depend on the other examples of a batch: the last batch is then
            computed at its own size, without padding.

    Returns:
        The network's outputs, with numpy arrays `[examples, ...]`.

    Raises:
        TypeError: the network or the source is something else.
        ValueError: outputs have no axis of examples, or the source does not visit every example
            exactly once.

    >>> from types import SimpleNamespace
    >>> from trainer import data
    >>> double = SimpleNamespace(
    ...     init=lambda key, x: (jnp.float32(1), {}),
    ...     apply=lambda params, model_state, x, *, key, train: (params * x, model_state),
    ... )
    >>> state = TrainState.create(params=jnp.float32(2), rng=jax.random.key(0))
    >>> predict(state, double, data.Arrays({"inputs": np.arange(5.0)}, batch_size=2))
    array([0., 2., 4., 6., 8.], dtype=float32)
    """
    require_source(source, "predict", "evaluation")
    is_apply = hasattr(network, "apply")
    if is_apply:
        check_network(network, "predict")
    elif not callable(network):
        raise TypeError(
            "predict needs a network, a pair (init, apply), or a function (state, batch) -> "
            f"outputs, such as task.outputs; got {describe_value(network)}"
        )
    feed = unpad_feed(source.evaluation()) if whole_batch else source.evaluation()
    run = _Prediction(network.apply if is_apply else network, is_apply, feed.batch)
    compiled = get_shared_cache(run).compiled
    jitted = compiled.setdefault(read_jax_settings(), jax.jit(run))
    state = attach_host_fields(jax.tree.map(jnp.asarray, strip_host_fields(state)), state)
    device = strip_host_fields(state)

    def batches() -> Iterator[tuple[PyTree, jax.Array]]:
        for piece, _ in feed.pieces(device, None, None):
            rows = jax.tree.map(np.asarray, feed.rows(piece, data_key(state)))
            for step in range(len(jax.tree.leaves(rows)[0])):
                row = jax.tree.map(lambda rows, step=step: rows[step], rows)
                yield jitted(device, piece, row)

    outputs = list(_fetch_pipelined(batches()))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *outputs)


@dataclasses.dataclass(frozen=True)
class _Prediction:
    """`(state, piece, row) -> (outputs, mask)`; equal where function and batching are equal."""

    owner: Callable[..., Any]
    """The function, by which the compiled code is cached."""
    is_apply: bool
    """Whether it is a network's `apply`, rather than a function of state and batch."""
    batch: Callable[[Any, Any], Any]

    def __call__(self, state: TrainState, piece: Any, row: Any) -> tuple[PyTree, jax.Array]:
        batch, mask = self.batch(piece, row)
        if self.is_apply:
            if "inputs" not in batch:
                raise ValueError(f"predict needs batch['inputs']; there is: {sorted(batch)}")
            key = state.key("network")
            returned = self.owner(
                state.params, state.model_state, batch["inputs"], key=key, train=False
            )
            outputs, _ = check_pair(self.owner, "apply", returned)
        else:
            outputs = self.owner(state, batch)
        for path, leaf in jax.tree_util.tree_leaves_with_path(outputs):
            if jnp.shape(leaf)[:1] != mask.shape:
                raise ValueError(
                    f"predict needs outputs whose first axis is the {len(mask)} examples of a "
                    f"batch; got {format_path(path) or 'outputs'} of shape "
                    f"{list(jnp.shape(leaf))}: "
                    "pass a function (state, batch) -> outputs that returns one per example"
                )
        return outputs, mask


def _fetch_pipelined(batches: Iterator[tuple[PyTree, jax.Array]]) -> Iterator[PyTree]:
    """Copy batches to the host, without their padding, while the next one computes."""
    before: tuple[PyTree, jax.Array] | None = None
    for batch in batches:
        for leaf in jax.tree.leaves(batch):
            leaf.copy_to_host_async()
        if before is not None:
            yield _fetch(*before)
        before = batch
    if before is not None:
        yield _fetch(*before)


def _fetch(outputs: PyTree, mask: jax.Array) -> PyTree:
    outputs, mask = gather((outputs, mask))
    real = np.asarray(mask)
    # A copy, since a view would keep the device's memory alive.
    return jax.tree.map(lambda leaf: np.asarray(leaf)[real], outputs)
