"""Answers: sampled from a network, and their log-probabilities as it learns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from trainer.data.prompts.left_padding import make_inputs
from trainer.phases.reductions import WEIGHT
from trainer.placement.constraints import gather_params, split_batch
from trainer.placement.layer_gathering import call_gathered
from trainer.rl.answering.grpo_config import GRPOConfig
from trainer.rl.answering.grpo_loss import has_signal
from trainer.rl.answering.prompt_tables import PromptTable
from trainer.rl.experience import PREFIX
from trainer.state import PyTree
from trainer.supervised.network_checks import check_pair
from trainer.supervised.precision import cast_floating


class Answers(NamedTuple):
    """The output of a sampling, from which the update learns; groups lie side by side."""

    prompt: dict[str, jax.Array]
    """`tokens`, `segments` and `positions`, int32 `[answer, time]` each, left-padded."""
    example: jax.Array
    """int32 `[answer]`: index of the prompt, over those of all lessons in order."""
    lesson: jax.Array
    """int32 `[answer]`: index of its lesson; 0 if there are none."""
    tokens: jax.Array
    """int32 `[answer, length]`, with the token that stopped it, and 0 after."""
    log_probs: jax.Array
    """float32 `[answer, length]`: of the tokens, under the policy that sampled them; 0 after."""
    lengths: jax.Array
    """int32 `[answer]`: number of tokens."""
    reward: jax.Array
    """float32 `[answer]`."""


class Sampling(NamedTuple):
    """How answers are sampled: a network, and the settings that sampling reads."""

    network: Any
    config: GRPOConfig
    greedy: bool = False
    """Take the likeliest token each time."""

    def sample(
        self, params: PyTree, model_state: PyTree, arrays: PyTree, rows: jax.Array, key: jax.Array
    ) -> Answers:
        """Sample an answer to each prompt of a table's `arrays`, with rewards of 0.

        Args:
            rows: indices of the prompts, int32 `[answer]`.
            key: () typed key.
        """
        config = self.config
        prompt = split_batch(make_inputs(arrays, rows))
        sampled = self.network.sample(
            _cast(gather_params(params), config.precision),
            _cast(gather_params(model_state, "model_state"), config.precision),
            prompt,
            key=key,
            length=config.length,
            temperature=0.0 if self.greedy else config.temperature,
            top_k=None if self.greedy else config.top_k,
            top_p=None if self.greedy else config.top_p,
            stop=config.stop or (),
        )
        return Answers(
            prompt,
            example=rows,
            lesson=arrays["lesson"][rows],
            tokens=sampled.tokens,
            log_probs=sampled.log_probs,
            lengths=sampled.lengths,
            reward=jnp.zeros(len(rows)),
        )


def _cast(variables: PyTree, precision: str) -> PyTree:
    """Cast parameters, or the model state, which no update changes."""
    return variables if precision == "float32" else cast_floating(variables, precision)


def compute_log_probs(
    network: Any, params: PyTree, model_state: PyTree, answers: Answers, config: GRPOConfig
) -> jax.Array:
    """Return log-probabilities of the answers' tokens, float32 `[answer, length]`.

    They are those of `log_softmax(logits / temperature)`, as in sampling; what follows an answer is
    arbitrary. The network runs in evaluation mode, without dropout, so that the first update begins
    with the probabilities of the sampling.
    """
    inputs = join_inputs(answers)

    def apply(params: PyTree, model_state: PyTree) -> Any:
        cast = _cast((params, model_state), config.precision)
        returned = network.apply(*cast, inputs, key=None, train=False)
        return check_pair(network, "apply", returned)[0]

    logits = call_gathered(apply, params, model_state)
    first = answers.prompt["tokens"].shape[1] - 1
    logits = logits[:, first:].astype(jnp.float32) / config.temperature
    return -optax.softmax_cross_entropy_with_integer_labels(logits, answers.tokens)


def join_inputs(answers: Answers) -> dict[str, jax.Array]:
    """Return prompts and answers as inputs, `[answer, time + length - 1]`; the last is no input."""
    prompt, count = answers.prompt, answers.tokens.shape[1]
    place = jnp.broadcast_to(jnp.arange(count), answers.tokens.shape)
    last = prompt["positions"][:, -1:]
    answer = {
        "tokens": answers.tokens,
        "segments": (place < answers.lengths[:, None]).astype(jnp.int32),
        "positions": last + 1 + place,
    }
    return {
        name: jnp.concatenate([prompt[name], answer[name][:, :-1]], axis=1).astype(jnp.int32)
        for name in answer
    }


def shape_answers(count: int, prompt: int, length: int) -> Answers:
    """Return the shapes of answers: how many, and the tokens of a prompt and of an answer."""

    def shape(*axes: int, dtype: Any = jnp.int32) -> Any:
        return jax.ShapeDtypeStruct((count, *axes), dtype)

    return Answers(
        {name: shape(prompt) for name in ("tokens", "segments", "positions")},
        example=shape(),
        lesson=shape(),
        tokens=shape(length),
        log_probs=shape(length, dtype=jnp.float32),
        lengths=shape(),
        reward=shape(dtype=jnp.float32),
    )


def measure_answers(answers: Answers, table: PromptTable, config: GRPOConfig) -> dict[str, Any]:
    """Return the metrics of answers, and what `finalize_answers` reads."""

    def average(values: jax.Array, where: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.sum(values, where=where, dtype=jnp.float32), jnp.sum(where, dtype=jnp.int32)

    every = jnp.ones(answers.lengths.shape, bool)
    metrics: dict[str, Any] = {
        "reward": average(answers.reward, every),
        "length": average(answers.lengths, every),
    }
    if config.stop:
        last = jnp.take_along_axis(answers.tokens, answers.lengths[:, None] - 1, axis=1)
        stopped = jnp.isin(last[:, 0], jnp.array(config.stop))
        metrics["unfinished"] = average(~stopped, every)
    for index, name in enumerate(table.lessons):
        metrics[f"reward/{name}"] = average(answers.reward, answers.lesson == index)
    broken = ~jnp.isfinite(answers.reward)
    weight = jnp.any(broken).astype(jnp.int32)
    return metrics | {
        f"{PREFIX}finite": 1 - weight,
        f"{PREFIX}example": answers.example[jnp.argmax(broken)],
        f"{PREFIX}example{WEIGHT}": weight,
    }


def measure_sampling(answers: Answers, config: GRPOConfig) -> dict[str, Any]:
    """Return the metrics of a sampling alone.

    These are `entropy`, an estimate by the tokens that were sampled, in nats per token, and
    `no_signal`, the share of groups whose rewards are equal.
    """
    signal = has_signal(answers.reward, config.group_size)
    tokens = jnp.sum(answers.lengths, dtype=jnp.int32)
    return {
        "entropy": (-jnp.sum(answers.log_probs), tokens),  # which are 0 after an answer
        "no_signal": (jnp.sum(~signal, dtype=jnp.int32), jnp.int32(signal.size)),
    }


def reduce_answers() -> dict[str, str]:
    """Return how metrics of several samplings become one."""
    return {f"{PREFIX}example": "first"}


def finalize_answers(means: Mapping[str, float], table: PromptTable) -> dict[str, float | None]:
    """Check that rewards are finite, and leave out lessons that were not drawn.

    Raises:
        ValueError: a reward is not finite; the error names the prompt.
    """
    if means[f"{PREFIX}finite"] < 1:
        index = int(means[f"{PREFIX}example"])
        raise ValueError(
            f"the reward of an answer to the prompt {table.texts[index]!r:.100} is not finite: "
            "return a finite number for every answer, also for one that is empty or malformed"
        )
    left_out: dict[str, float | None] = {n: None for n in means if n.startswith(PREFIX)}
    lessons = (f"reward/{lesson}" for lesson in table.lessons)
    return left_out | {name: None for name in lessons if math.isnan(means[name])}
