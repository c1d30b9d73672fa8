"""Losses of preferences: an answer that was chosen over another, for the same prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from trainer.checks.arguments import require_number
from trainer.checks.pytrees import describe_leaf
from trainer.losses.loss import Loss
from trainer.losses.pairs import check_pairs, compute_pair_log_probs
from trainer.losses.weighing import attach_weights, combine_weights

LEAST = 1e-7
"""How far below 0 a mean log-probability is at least, so that its odds are finite."""


def dpo(*, beta: float = 0.1, label_smoothing: float = 0.0) -> Loss:
    """Make the loss of direct preference optimization.

    The reward of an answer is `beta` times the logarithm of how much likelier the network makes it
    than the reference does. The loss is the negative log-likelihood, of the logistic model of
    rewards, that the chosen answer is preferred.

    The loss reads the pairs of a batch, one a row:

    - `inputs["segments"]`, integer `[batch, time]`: 1 where a token belongs to the prompt with the
      chosen answer, 2 to the prompt with the rejected one, 0 for padding;
    - `labels`, integer `[batch, time]`, the token after each input;
    - `mask`, bool `[batch, time]`, true where a label is a token of an answer;
    - `reference`, floating `[batch, 2]`, the sums of the reference's log-probabilities of the
      chosen and the rejected answer, as `trainer.add_reference` computes them;
    - optionally `weights`, numbers `[batch]`, how much each pair counts.

    Without `reference` the outputs are `{"logits", "reference_logits"}`, as a network of
    `models.with_reference` computes them; otherwise they are logits
    `[batch, time, vocabulary]`. A row of padding alone weighs 0.

    It reports, per pair, `loss` in nats; `accuracy`, 1 where the chosen answer has the greater
    reward; `chosen_reward`, `rejected_reward` and their difference `reward_margin`; and
    `chosen_log_prob`, `rejected_log_prob`, sums over the answer's tokens.

    Args:
        beta: strength of the penalty for leaving the reference; above 0, finite.
        label_smoothing: probability that a preference is wrong, in [0, 0.5).

    Raises:
        TypeError: a setting is no number.
        ValueError: a setting is out of range; when called, there is no reference or there are two,
            or an array has another shape or kind; before training, a pair lacks an answer.

    Source: Rafailov et al., "Direct Preference Optimization", equation 7 (2023); Mitchell, "A note
    on DPO with noisy preferences", equation 3 (2023), for `label_smoothing`.

    >>> logits = jnp.log(jnp.array([[[0.5, 0.5], [0.25, 0.75]]]))
    >>> batch = {
    ...     "inputs": {"segments": jnp.array([[1, 2]])},
    ...     "labels": jnp.array([[0, 1]]), "mask": jnp.array([[True, True]]),
    ...     "reference": jnp.log(jnp.array([[0.25, 0.75]])),
    ... }
    >>> values = dpo(beta=1.0)(logits, batch)
    >>> round(float(values["loss"][0][0]), 4)    # -log(2 / (2 + 1)): rewards log 2 and 0
    0.4055
    """
    if not 0 < require_number("beta", beta) < math.inf:
        raise ValueError(f"dpo: beta must be above 0 and finite, such as 0.1; got {beta}")
    if not 0 <= require_number("label_smoothing", label_smoothing) < 0.5:
        raise ValueError(
            "dpo: label_smoothing, the probability that a preference is wrong, must be in "
            f"[0, 0.5); got {label_smoothing}"
        )

    def dpo(outputs: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        logits, reference = _split_reference(outputs, batch)
        policy = compute_pair_log_probs("dpo", logits, batch)
        rewards = beta * (policy.total - reference)
        margin = rewards[:, 0] - rewards[:, 1]
        right = -jax.nn.log_sigmoid(margin) * (1 - label_smoothing)
        loss = right - jax.nn.log_sigmoid(-margin) * label_smoothing
        return _report(batch, policy.tokens, loss, rewards, policy.total)

    return Loss(dpo, check=check_pairs)


def orpo(*, beta: float = 0.1) -> Loss:
    """Make the loss of odds ratio preference optimization, which needs no reference.

    It is the cross entropy of the chosen answer plus `beta` times the negative log-likelihood, of
    the logistic model of the log odds of the answers' mean log-probabilities, that the chosen
    answer is preferred.

    It reads the pairs of a batch as `dpo` does, without a reference; the outputs are logits
    `[batch, time, vocabulary]`.

    It reports, per pair, `loss` in nats; `cross_entropy` of the chosen answer, and
    `log_odds_ratio`, of the chosen answer to the rejected one; `accuracy`, `chosen_reward`,
    `rejected_reward`, `reward_margin`, `chosen_log_prob` and `rejected_log_prob` as `dpo`, where
    log-probabilities are means over the answer's tokens, and rewards `beta` times these.

    Args:
        beta: weight of the odds ratio, which the paper calls lambda; above 0, finite.

    Raises:
        TypeError: `beta` is no number.
        ValueError: `beta` is out of range; when called, an array is missing or has another shape or
            kind; before training, a pair lacks an answer.

    Source: Hong et al., "ORPO: Monolithic Preference Optimization without Reference Model",
    equations 4, 6 and 7 (2024). The cross entropy is of the answer, as there; TRL's is of the
    prompt too.

    >>> logits = jnp.log(jnp.array([[[0.5, 0.5], [0.25, 0.75]]]))
    >>> batch = {
    ...     "inputs": {"segments": jnp.array([[1, 2]])},
    ...     "labels": jnp.array([[0, 1]]), "mask": jnp.array([[True, True]]),
    ... }
    >>> loss, pairs = orpo(beta=1.0)(logits, batch)["loss"]
    >>> round(float(loss[0]), 4)    # log 2 + log 4: the odds are 1 and 3
    2.0794
    """
    if not 0 < require_number("beta", beta) < math.inf:
        raise ValueError(f"orpo: beta must be above 0 and finite, such as 0.1; got {beta}")

    def orpo(outputs: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        if "reference" in batch:
            raise ValueError(
                "orpo compares the answers without a reference; the batch has one: leave it out, "
                "or take losses.dpo"
            )
        policy = compute_pair_log_probs("orpo", outputs, batch)
        mean = jnp.minimum(policy.mean, -LEAST)
        log_odds = mean - jnp.log(-jnp.expm1(mean))
        ratio = log_odds[:, 0] - log_odds[:, 1]
        entropy = -policy.mean[:, 0]
        loss = entropy - beta * jax.nn.log_sigmoid(ratio)
        more = {"cross_entropy": entropy, "log_odds_ratio": ratio}
        return _report(batch, policy.tokens, loss, beta * policy.mean, policy.mean, **more)

    return Loss(orpo, check=check_pairs)


def _report(
    batch: Mapping[str, Any],
    tokens: jax.Array,
    loss: jax.Array,
    rewards: jax.Array,
    log_probs: jax.Array,
    **more: jax.Array,
) -> dict[str, Any]:
    values = {
        "loss": loss,
        "accuracy": (rewards[:, 0] > rewards[:, 1]).astype(jnp.float32),
        "chosen_reward": rewards[:, 0],
        "rejected_reward": rewards[:, 1],
        "reward_margin": rewards[:, 0] - rewards[:, 1],
        "chosen_log_prob": log_probs[:, 0],
        "rejected_log_prob": log_probs[:, 1],
        **more,
    }
    pairs = (tokens > 0).all(axis=-1).astype(jnp.float32)
    given = {name: entry for name, entry in batch.items() if name == "weights"}
    weights = combine_weights("a loss of preferences", given, pairs.shape, "[batch]")
    pairs = pairs if weights is None else pairs * weights
    return {name: attach_weights(value, pairs) for name, value in values.items()}


def _split_reference(outputs: Any, batch: Mapping[str, Any]) -> tuple[Any, jax.Array]:
    """Return logits, and the reference's summed log-probabilities, float32 `[batch, 2]`."""
    inside = isinstance(outputs, Mapping) and "reference_logits" in outputs
    if inside == ("reference" in batch):
        found = "both" if inside else "neither"
        raise ValueError(
            "dpo needs one reference: batch['reference'], which trainer.add_reference computes "
            "once, or outputs['reference_logits'], which a network of models.with_reference "
            f"computes in the step; there is {found}"
        )
    if inside:
        reference = compute_pair_log_probs("dpo", outputs["reference_logits"], batch).total
        return outputs.get("logits"), jax.lax.stop_gradient(reference)
    reference = batch["reference"]
    rows = len(jax.tree.leaves(batch["labels"])[0]) if "labels" in batch else 0
    if getattr(reference, "shape", None) != (rows, 2):
        raise ValueError(
            f"dpo needs reference [batch, 2] = [{rows}, 2], of the chosen and the rejected answer; "
            f"got {describe_leaf(reference)}"
        )
    return outputs, reference.astype(jnp.float32)
