"""Log-probabilities of a reference network, computed once and kept with the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax

from trainer.checks.arguments import describe_value
from trainer.data.arrays import Arrays
from trainer.data.conversations.conversation_source import Conversations
from trainer.data.memory_map import MemoryMap
from trainer.losses.pairs import compute_pair_log_probs
from trainer.state import PyTree, TrainState
from trainer.supervised.network_checks import check_network, check_pair
from trainer.supervised.predicting import predict

Pairs = TypeVar("Pairs", Arrays, MemoryMap, Conversations)

REFERENCE = "reference"
"""Name in a batch of the reference's log-probabilities."""


def add_reference(
    source: Pairs, network: Any, params: PyTree, model_state: PyTree | None = None
) -> Pairs:
    """Return a source of pairs with what a reference assigns to their answers.

    The sums of the log-probabilities are computed once, in order, batch by batch, and kept under
    `reference`, which `losses.dpo` reads; training then does without the reference. They equal what
    `models.with_reference` computes in every step. On several processes all must call it.

    Args:
        source: of pairs, as `data.preferences` returns and `losses.dpo` reads them.
        network: the reference, a pair (init, apply) as `models.Network` describes; it is called
            with `train=False`.
        params: its parameters; on a mesh, where they lie.
        model_state: its other variables; None for none.

    Returns:
        A source of the same kind, whose batches have `reference`, float32 `[batch, 2]`, of the
        chosen and the rejected answer, besides.

    Raises:
        TypeError: the network or the source is something else.
        ValueError: the source has a reference already, or is none of pairs.

    >>> import numpy as np
    >>> from types import SimpleNamespace
    >>> from trainer import data
    >>> even = SimpleNamespace(
    ...     init=lambda key, x: ({}, {}),
    ...     apply=lambda params, model_state, x, *, key, train: (
    ...         jax.numpy.zeros((*x["segments"].shape, 2)), model_state),
    ... )
    >>> pairs = data.Arrays({
    ...     "inputs": {"segments": np.array([[1, 1, 2, 2]] * 3)},
    ...     "labels": np.zeros((3, 4), int), "mask": np.array([[0, 1, 1, 1]] * 3, bool),
    ... }, batch_size=2)
    >>> known = add_reference(pairs, even, {}).example["reference"]
    >>> np.exp(known).round(3).tolist()    # the answers are of one and of two tokens
    [[0.5, 0.25], [0.5, 0.25]]
    """
    check_network(network, "add_reference")
    if not isinstance(source, Arrays | MemoryMap | Conversations):
        raise TypeError(
            "add_reference takes a source of pairs that reads its examples by number, of "
            f"data.preferences, Arrays or MemoryMap; got {describe_value(source)}"
        )
    if REFERENCE in source.example:
        raise ValueError("add_reference: the source has a reference already")
    state = TrainState.create(params=params, model_state=model_state, rng=jax.random.key(0))
    whole = dataclasses.replace(source, steps_per_epoch=None)
    found = predict(state, _AnswerScores(network.apply), whole)
    arrays: dict[str, Any] = {**source.arrays, REFERENCE: found}
    return dataclasses.replace(source, arrays=arrays)


@dataclasses.dataclass(frozen=True)
class _AnswerScores:
    """`(state, batch) -> [batch, 2]`; equal for one network, so that it is compiled once."""

    forward: Callable[..., Any]

    def __call__(self, state: TrainState, batch: Mapping[str, Any]) -> jax.Array:
        inputs = batch.get("inputs")
        returned = self.forward(state.params, state.model_state, inputs, key=None, train=False)
        logits, _ = check_pair(self.forward, "apply", returned)
        return compute_pair_log_probs("add_reference", logits, batch).total
