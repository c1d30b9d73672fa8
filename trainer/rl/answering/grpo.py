"""Group relative policy optimization: the program of a sampling and an update."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from trainer.checks.arguments import describe_value
from trainer.checks.language_models import require_sampler, require_tokenizer
from trainer.host.exception_notes import annotate_errors
from trainer.losses.loss import check_range
from trainer.phases.phase import Phase
from trainer.placement.hoisting import jit_hoisted
from trainer.rl.answering.answer_phases import evaluate_answers, sample_answers
from trainer.rl.answering.answer_updates import REFERENCE, update_on_answers
from trainer.rl.answering.answers import Sampling
from trainer.rl.answering.grpo_config import GRPOConfig
from trainer.rl.answering.prompt_tables import PromptTable, tabulate_prompts
from trainer.rl.answering.reward_calls import try_reward
from trainer.rl.ppo import Agent
from trainer.state import PyTree, TrainState, check_key
from trainer.supervised.network_checks import check_network, check_pair
from trainer.supervised.optimizer_updates import check_optimizer, init_optimizer


def grpo(
    network: Any,
    tokenizer: Any,
    prompts: Any,
    reward: Any,
    optimizer: optax.GradientTransformation,
    config: GRPOConfig = GRPOConfig(),
) -> Agent:
    """Build an agent that learns to answer prompts, by group relative policy optimization.

    Its program is `sample` and `update`. The first draws prompts and samples a group of answers to
    each, with a cache, in one loop that ends when all have stopped; the second takes optimizer
    steps on them. All that a run needs is in the state, so a killed run resumes bit for bit.

    `sample` reports `reward`, `length` (tokens), `entropy` (nats per token, estimated by the tokens
    sampled), `no_signal` (share of groups whose rewards are equal), with stop tokens `unfinished`
    (share of answers without one), with lessons `reward/<lesson>`, and with a `HostReward` `failed`
    (share of answers). Its output, `metrics.output` for hooks, is the `Answers`. `update` reports
    what the loss does (see `grpo_loss`), `grad_norm`, `clipped` and `learning_rate`, each with a
    trace of one value per minibatch.

    The reference of the divergence are the parameters at the start, kept at
    `state.carry["reference"]`. It shares `model_state` with the policy, so the frozen base of
    adapters is not kept twice.

    Args:
        network: a decoder, as `models.transformer` returns: `init`, `apply` and `sample`.
            `models.pretrained` makes one that starts with parameters of your own.
        tokenizer: with `encode(text)`, which returns token ids or a record with `ids`, and
            `decode(ids)`: a `tokenizers.Tokenizer`, for instance.
        prompts: a sequence of prompts, each a text, token ids, or a dict of such a `prompt` and
            other fields, or a dict of such sequences by lesson. A lesson is drawn by
            `state.carry["lessons"]`, all alike at the start, which `hooks.adapt_curriculum`
            changes, and a prompt of it with equal chances, so one may come up twice.
        reward: a jittable function `(examples, tokens, lengths) -> rewards`, or a `HostReward`.
            `examples` is a dict of arrays `[answer, ...]`: `prompt`, the left-padded token ids,
            and the other fields that are numbers; `tokens` int32 `[answer, length]` with 0 after
            the end; `lengths` int32 `[answer]`, stop token included; rewards are `[answer]`.
        optimizer: of optax.
        config: all other settings.

    Raises:
        TypeError, ValueError: the network does not sample, its context is shorter than a prompt and
            an answer, its vocabulary lacks a token, there are no prompts, or the reward does not
            give a finite number for each of a few made-up answers; while training, a reward is not
            finite.

    Source: see `GRPOConfig`.
    """
    who = "grpo"
    table = _check(network, tokenizer, prompts, reward, config, who)
    check_optimizer(optimizer, who)

    def begin(key: jax.Array) -> Any:
        root, network_key = jax.random.split(key)
        return root, check_pair(network, "init", network.init(network_key, table.first_inputs))

    begin_once = jit_hoisted(begin)

    def init(key: jax.Array) -> TrainState:
        check_key(key)
        root, (params, model_state) = begin_once(key)
        carry: dict[str, PyTree] = {}
        if table.lessons:
            carry["lessons"] = jnp.full(len(table.lessons), 1 / len(table.lessons), jnp.float32)
        if config.kl_coefficient:
            carry[REFERENCE] = {"params": jax.tree.map(jnp.copy, params)}
        return TrainState.create(
            params=params,
            opt_state=init_optimizer(optimizer, params, who),
            model_state=model_state,
            rng=root,
            carry=carry,
        )

    rollout = sample_answers(Sampling(network, config), tokenizer, table, reward)
    return Agent(init, rollout, update_on_answers(network, optimizer, config))


def evaluation_of_answers(
    network: Any,
    tokenizer: Any,
    prompts: Any,
    reward: Any,
    config: GRPOConfig = GRPOConfig(),
    *,
    greedy: bool = True,
    name: str = "val",
) -> Phase:
    """Build a phase that answers every prompt once, and keeps the state.

    `hooks.evaluate` runs it between epochs, `trainer.evaluate` once. It reports what the phase
    `sample` of `grpo` does, without `entropy` and `no_signal`: means over all prompts, and by
    lesson.

    Args:
        network, tokenizer, prompts, reward: as for `grpo`.
        config: of which it reads `length`, `stop` and `precision`, without `greedy` the settings of
            sampling, and for the number of answers at a time `prompts` and `group_size`.
        greedy: take the likeliest token each time; False samples it, others in each epoch.
        name: of the phase, the prefix of its metrics.

    Raises:
        TypeError, ValueError: as `grpo`.
    """
    table = _check(network, tokenizer, prompts, reward, config, "evaluation_of_answers")
    return evaluate_answers(Sampling(network, config, greedy), tokenizer, table, reward, name)


def _check(
    network: Any, tokenizer: Any, prompts: Any, reward: Any, config: Any, who: str
) -> PromptTable:
    """Check that all fits together, and return the prompts."""
    check_network(network, who)
    require_sampler(network, who)
    require_tokenizer(tokenizer, who)
    if not isinstance(config, GRPOConfig):
        raise TypeError(f"{who} takes a GRPOConfig(...); got {describe_value(config)}")
    table = tabulate_prompts(tokenizer, prompts, who)
    vocabulary = _find_vocabulary(network, table, config, who)
    check_range(f"{who}: tokens of prompts", table.arrays["tokens"], vocabulary, "tokens")
    check_range("GRPOConfig: stop", np.array(config.stop, np.int64), vocabulary, "tokens")
    _try_sampling(network, table, config, who)
    try_reward(reward, tokenizer, table, config, vocabulary)
    return table


def _find_vocabulary(network: Any, table: PromptTable, config: GRPOConfig, who: str) -> int:
    """Return the size of the network's vocabulary, after checking that it reads whole answers."""

    def call() -> Any:
        time = table.arrays["tokens"].shape[1] + config.length
        whole = jnp.zeros((1, time), jnp.int32)
        inputs = {"tokens": whole, "segments": whole, "positions": whole}
        params, model_state = network.init(jax.random.key(0), inputs)
        return network.apply(params, model_state, inputs, key=None, train=False)[0]

    with annotate_errors(_describe_longest(table, config, who)):
        logits = jax.eval_shape(call)
    shape: tuple[int, ...] = getattr(logits, "shape", ())
    if len(shape) != 3:
        raise ValueError(
            f"{who} needs a network that returns logits [batch, time, vocabulary]; got "
            f"{describe_value(logits)}"
        )
    return shape[2]


def _try_sampling(network: Any, table: PromptTable, config: GRPOConfig, who: str) -> None:
    """Trace a sampling: a decoder refuses a cache that is longer than its context.

    It does not refuse such inputs with segments, of which only the positions are limited.
    """

    def call(arrays: PyTree) -> Any:
        key = jax.random.key(0)
        params, model_state = network.init(key, table.first_inputs)
        rows, sampling = jnp.zeros(1, jnp.int32), Sampling(network, config)
        return sampling.sample(params, model_state, arrays, rows, key).tokens

    with annotate_errors(_describe_longest(table, config, who)):
        jax.eval_shape(call, dict(table.arrays))


def _describe_longest(table: PromptTable, config: GRPOConfig, who: str) -> str:
    """Return what the context has to hold, for errors."""
    length = table.arrays["tokens"].shape[1]
    return (
        f"{who}: the longest prompt has {length} tokens, {table.texts[table.longest]!r:.60}, and "
        f"an answer up to {config.length}: the network needs a context of "
        f"{length + config.length}; leave out long prompts, or take a smaller "
        "GRPOConfig(length=...)"
    )
