"""Group relative policy optimization: the program of a sampling and an update."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from trainer.checks.arguments import check_range, describe_value
from trainer.checks.language_models import check_prompts, require_sampler
from trainer.data.prompts.prompt_encoding import prepare_tokenizer
from trainer.data.prompts.stop_tokens import choose_stop
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
        tokenizer: the directory of the weights or another that `data.open_tokenizer` takes or
            returns; or an object with `encode(text)`, which returns token ids or a record with
            `ids`, and `decode(ids)`.
        prompts: a sequence of prompts, each a text, a list of messages, which the chat template of
            the tokenizer writes up to the beginning of an answer, or token ids; or a dict of such a
            `prompt` and other fields; or a dict of such sequences by lesson. A lesson is drawn by
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
    tokenizer, table, config = _check(network, tokenizer, prompts, reward, config, who)
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
    who = "evaluation_of_answers"
    tokenizer, table, config = _check(network, tokenizer, prompts, reward, config, who)
    return evaluate_answers(Sampling(network, config, greedy), tokenizer, table, reward, name)


def _check(
    network: Any, tokenizer: Any, prompts: Any, reward: Any, config: Any, who: str
) -> _Parts:
    """Check that all fits together, and return what the phases need."""
    check_network(network, who)
    require_sampler(network, who)
    prepared = prepare_tokenizer(tokenizer, who)
    if not isinstance(config, GRPOConfig):
        raise TypeError(f"{who} takes a GRPOConfig(...); got {describe_value(config)}")
    config = dataclasses.replace(config, stop=choose_stop(config.stop, prepared, who))
    table = tabulate_prompts(prepared, prompts, who)
    first = jax.random.key(0), table.first_inputs
    params, model_state = jax.eval_shape(lambda: network.init(*first))
    vocabulary = check_prompts(network, params, model_state, table.arrays, config.length, who)
    check_range("GRPOConfig: stop", np.array(config.stop, np.int64), vocabulary, "tokens")
    try_reward(reward, prepared, table, config, vocabulary)
    return _Parts(prepared, table, config)


class _Parts(NamedTuple):
    """What a sampling is made of, checked."""

    tokenizer: Any
    table: PromptTable
    config: GRPOConfig
    """With the tokens that end an answer."""
