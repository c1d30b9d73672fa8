"""The update: optimizer steps on minibatches of answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from trainer.losses.loss import as_loss
from trainer.phases.phase import Phase
from trainer.placement.constraints import split_batch
from trainer.rl.answering.answers import Answers, compute_log_probs
from trainer.rl.answering.grpo_config import GRPOConfig
from trainer.rl.answering.grpo_loss import compute_group_advantages, grpo_loss
from trainer.rl.minibatch_steps import shuffle_minibatches, take_minibatch_steps
from trainer.state import PyTree, TrainState
from trainer.supervised import batch_means, gradients

REFERENCE = "reference"
"""Name in `state.carry` of the reference's parameters, at `params`."""


def update_on_answers(
    network: Any, optimizer: optax.GradientTransformation, config: GRPOConfig
) -> Phase:
    """Build the phase `update`, which learns from the `Answers` of the phase before it."""
    loss, name = as_loss(grpo_loss(config)), "update"

    def run(state: TrainState, answers: Answers) -> tuple[TrainState, None, dict[str, Any]]:
        if not isinstance(answers, Answers):
            raise TypeError(
                f"phase {name!r} learns from the Answers of the phase before it, which must sample "
                f"them; got {type(answers).__name__}: a program is (agent.rollout, agent.update)"
            )
        batch: dict[str, PyTree] = {
            "answers": answers,
            "log_prob": answers.log_probs,
            "lengths": answers.lengths,
            "advantage": compute_group_advantages(
                answers.reward, config.group_size, normalize_std=config.normalize_std
            ),
        }
        if config.kl_coefficient:
            batch["reference"] = compute_reference(network, state, answers, config)
        rows = shuffle_minibatches(state.key(name), config.answers, config)

        def compute(state: TrainState, row: jax.Array) -> gradients.Gradients:
            part = split_batch(jax.tree.map(lambda x: jnp.take(x, row, axis=0), batch))
            return compute_answer_gradients(state, part, network, loss, config)

        after, traces = take_minibatch_steps(
            state, rows, compute, optimizer, clip_norm=config.clip_norm
        )
        return after, None, traces

    return Phase(name, run)


def compute_answer_gradients(
    state: TrainState, batch: dict[str, PyTree], network: Any, loss: Any, config: GRPOConfig
) -> gradients.Gradients:
    """Return the gradients and the loss's means of a minibatch `[answer, ...]`."""

    def objective(
        params: PyTree, model_state: PyTree, batch: Mapping[str, PyTree], key: jax.Array
    ) -> tuple[dict[str, batch_means.WeightedMean], PyTree]:
        found = compute_log_probs(network, params, model_state, batch["answers"], config)
        means = batch_means.compute_means(loss, state.step, {"log_prob": found}, batch)
        return means, model_state

    return gradients.compute_gradients(
        objective, state.params, state.model_state, batch, state.key("network")
    )


def compute_reference(
    network: Any, state: TrainState, answers: Answers, config: GRPOConfig
) -> jax.Array:
    """Return log-probabilities of the tokens under the reference, float32 `[answer, length]`.

    They are computed once for all passes, as many answers at a time as a minibatch has.

    Raises:
        ValueError: the state has no reference.
    """
    if not isinstance(state.carry, Mapping) or REFERENCE not in state.carry:
        raise ValueError(
            "GRPOConfig(kl_coefficient=...) above 0 needs the reference's parameters at "
            f"state.carry[{REFERENCE!r}], which are not there: begin with a state that the init of "
            "trainer.rl.grpo made"
        )
    params, count = state.carry[REFERENCE]["params"], config.minibatches
    # By a stride: contiguous parts of answers that are split over devices would move.
    parts = jax.tree.map(
        lambda x: x.reshape(len(x) // count, count, *x.shape[1:]).swapaxes(0, 1), answers
    )
    found = lax.map(
        lambda part: compute_log_probs(network, params, state.model_state, part, config), parts
    )
    return found.swapaxes(0, 1).reshape(answers.tokens.shape)
