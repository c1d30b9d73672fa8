"""Phases that sample answers and reward them: for the update, and to evaluate."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from trainer.phases.phase import Phase
from trainer.rl.answering.answers import (
    Answers,
    Sampling,
    finalize_answers,
    measure_answers,
    measure_sampling,
    reduce_answers,
    shape_answers,
)
from trainer.rl.answering.host_rewards import HostReward
from trainer.rl.answering.prompt_tables import PromptTable, draw_prompts
from trainer.rl.answering.reward_calls import (
    Collect,
    ScoredAnswers,
    ScoredSource,
    Scorer,
    call_on_device,
)
from trainer.state import PyTree, TrainState

Measure = Callable[[Answers], dict[str, Any]]
"""`(answers) -> metrics`, jittable."""


def sample_answers(sampling: Sampling, tokenizer: Any, table: PromptTable, reward: Any) -> Phase:
    """Build the phase `sample`, which outputs `Answers` and does not change the state.

    It draws prompts by `state.carry["lessons"]`, and samples a group of answers to each.
    """
    config, name = sampling.config, "sample"

    def collect(state: TrainState, arrays: PyTree) -> Answers:
        if not table.lessons:
            weights = jnp.ones(1)
        elif isinstance(state.carry, Mapping) and "lessons" in state.carry:
            weights = state.carry["lessons"]
        else:
            raise ValueError(
                f"phase {name!r} draws lessons by state.carry['lessons'], which is not there: "
                "begin with a state that the init of trainer.rl.grpo made"
            )
        draw, key = jax.random.split(state.key(name))
        rows = jnp.repeat(
            draw_prompts(draw, table.counts, weights, config.prompts), config.group_size
        )
        return sampling.sample(state.params, state.model_state, arrays, rows, key)

    def measure(answers: Answers) -> dict[str, Any]:
        metrics = measure_answers(answers, table, config)
        return metrics | measure_sampling(answers, config)

    scored = _make_scorer(sampling, tokenizer, table, reward)
    # Changing: a phase that only measures is not repeated by `trainer.repeated`.
    return _build_phase(name, config.answers, collect, measure, table, scored, changing=True)


def evaluate_answers(
    sampling: Sampling, tokenizer: Any, table: PromptTable, reward: Any, name: str
) -> Phase:
    """Build a phase that answers every prompt of a table once, and keeps the state."""
    config, count = sampling.config, len(table.texts)
    size = min(count, config.answers)
    batches = -(-count // size)
    indices = np.minimum(np.arange(batches * size), count - 1).reshape(batches, size)

    def collect(state: TrainState, arrays: PyTree) -> Answers:
        def answer(given: tuple[jax.Array, jax.Array]) -> Answers:
            return sampling.sample(state.params, state.model_state, arrays, *given)

        keys = jax.random.split(state.key(name), batches)
        answers = lax.map(answer, (jnp.asarray(indices, jnp.int32), keys))
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], answers)

    def measure(answers: Answers) -> dict[str, Any]:
        return measure_answers(answers, table, config)

    scored = _make_scorer(sampling, tokenizer, table, reward)
    return _build_phase(name, count, collect, measure, table, scored, changing=False)


def _make_scorer(sampling: Sampling, tokenizer: Any, table: PromptTable, reward: Any) -> Any:
    """Return what rewards answers: a `Scorer` on the host, or the jittable function."""
    if isinstance(reward, HostReward):
        return Scorer(reward, tokenizer, table, sampling.config)
    return reward


def _build_phase(
    name: str,
    count: int,
    collect: Collect,
    measure: Measure,
    table: PromptTable,
    reward: Any,
    *,
    changing: bool,
) -> Phase:
    """Build a phase that collects `count` answers and rewards them, where the reward computes."""

    def run_on_device(state: TrainState, arrays: PyTree) -> tuple[TrainState, Answers, Any]:
        answers = call_on_device(reward, arrays, collect(state, arrays))
        return state, answers, measure(answers)

    def report(state: TrainState, scored: ScoredAnswers) -> tuple[TrainState, Answers, Any]:
        failed = jnp.sum(scored.failed, dtype=jnp.int32), jnp.int32(count)
        return state, scored.answers, measure(scored.answers) | {"failed": failed}

    common: dict[str, Any] = {
        "reduce": reduce_answers(),
        "finalize": functools.partial(finalize_answers, table=table),
    }
    if not isinstance(reward, Scorer):
        return Phase(name, run_on_device, table.source, updates_state=changing, **common)
    shapes = shape_answers(count, table.arrays["tokens"].shape[1], reward.config.length)
    source = ScoredSource(collect, reward, shapes)
    return Phase(
        *(name, report, source),
        updates_state=False,
        check_data=lambda state, batch: None,  # so that the source sees the state
        **common,
    )
