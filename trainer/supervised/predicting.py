"""Prediction: what a network gives for a whole split, example by example."""

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
from trainer.phases.shared_compilation import get_shared_cache, read_jax_settings
from trainer.state import PyTree, TrainState, attach_host_fields, data_key, strip_host_fields
from trainer.supervised.network_checks import check_network, check_pair


def predict(state: TrainState, network: Any, source: Source) -> PyTree:
    """Give a network's outputs for every example of a split, in order.

    They go to the host batch by batch, so that the device holds those of two batches at a time. A
    ragged tail is computed at the size of a batch and cut, so that one program serves for all; it
    is compiled once for a network and shapes, however often this is called.

    Args:
        state: with the parameters; left as it is.
        network: a pair (init, apply) as `models.Network` describes, which is asked with
            `train=False`; or a function `(state, batch) -> outputs`, jittable, such as
            `task.outputs` (in the precision of the task), or one that gives less than all logits.
            One that looks at the other examples of a batch says so by the attribute
            `whole_batch = True`: its last batch is then computed at its own size.
        source: of batches, read in order; only `inputs` are needed.

    Returns:
        Outputs as the network gives them, of numpy arrays `[examples, ...]`.

    Raises:
        TypeError: the network is none, or the source is none.
        ValueError: outputs without an axis of examples, or a source that does not visit every
            example exactly once.

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
    function, feed = _function_of(network), source.evaluation()
    if getattr(function, "whole_batch", False):
        feed = unpad_feed(feed)
    run = _Predicting(function, hasattr(network, "apply"), feed.batch)
    programs = get_shared_cache(run).programs
    jitted = programs.setdefault(read_jax_settings(), jax.jit(run))
    state = attach_host_fields(jax.tree.map(jnp.asarray, strip_host_fields(state)), state)
    device = strip_host_fields(state)

    def batches() -> Iterator[tuple[PyTree, jax.Array]]:
        for piece, _ in feed.pieces(device, None, None):
            rows = jax.tree.map(np.asarray, feed.rows(piece, data_key(state)))
            for step in range(len(jax.tree.leaves(rows)[0])):
                row = jax.tree.map(lambda rows, step=step: rows[step], rows)
                yield jitted(device, piece, row)

    arrived = list(_one_behind(batches()))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *arrived)


@dataclasses.dataclass(frozen=True)
class _Predicting:
    """`(state, piece, row) -> (outputs, mask)`; equal where the function and the cut are."""

    owner: Callable[..., Any]
    """What computes, and what keeps the program that was compiled of it."""
    applied: bool
    """Whether it is a network's `apply`, or a function of state and batch."""
    batch: Callable[[Any, Any], Any]

    def __call__(self, state: TrainState, piece: Any, row: Any) -> tuple[PyTree, jax.Array]:
        batch, mask = self.batch(piece, row)
        if self.applied:
            if "inputs" not in batch:
                raise ValueError(f"predict needs batch['inputs']; there is: {sorted(batch)}")
            key = state.key("network")
            made = self.owner(
                state.params, state.model_state, batch["inputs"], key=key, train=False
            )
            outputs, _ = check_pair(self.owner, "apply", made)
        else:
            outputs = self.owner(state, batch)
        for path, leaf in jax.tree_util.tree_leaves_with_path(outputs):
            if jnp.shape(leaf)[:1] != mask.shape:
                raise ValueError(
                    f"predict needs outputs with an axis of the {len(mask)} examples of a batch "
                    f"first; got {format_path(path) or 'outputs'} of shape "
                    f"{list(jnp.shape(leaf))}: "
                    "give a function (state, batch) -> outputs that returns one for each example"
                )
        return outputs, mask


def _function_of(network: Any) -> Callable[..., Any]:
    if hasattr(network, "apply"):
        check_network(network, "predict")
        return network.apply
    if callable(network):
        return network
    raise TypeError(
        "predict needs a network, a pair (init, apply), or a function (state, batch) -> outputs, "
        f"such as task.outputs; got {describe_value(network)}"
    )


def _one_behind(batches: Iterator[tuple[PyTree, jax.Array]]) -> Iterator[PyTree]:
    """Bring batches to the host, cut to their real examples, while the next one computes."""
    before: tuple[PyTree, jax.Array] | None = None
    for batch in batches:
        for leaf in jax.tree.leaves(batch):
            leaf.copy_to_host_async()
        if before is not None:
            yield _on_host(*before)
        before = batch
    if before is not None:
        yield _on_host(*before)


def _on_host(outputs: PyTree, mask: jax.Array) -> PyTree:
    real = np.asarray(mask)
    # A copy, since a view of the device's memory would keep it.
    return jax.tree.map(lambda leaf: np.asarray(leaf)[real], outputs)
