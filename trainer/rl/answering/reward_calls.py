"""Calls of rewards: on the device while a phase is traced, or on the host between its parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trainer.checks.arguments import require_function
from trainer.data.source import Check, Feed
from trainer.host.exception_notes import annotate_errors
from trainer.host.time_spans import span
from trainer.placement.constraints import trace_on_mesh
from trainer.rl.answering.answers import Answers
from trainer.rl.answering.grpo_config import GRPOConfig
from trainer.rl.answering.host_rewards import AnswerGroup, HostReward, compute_host_rewards
from trainer.rl.answering.prompt_tables import PromptTable, make_inputs
from trainer.state import PyTree, TrainState, strip_host_fields

Collect = Callable[[TrainState, PyTree], Answers]
"""`(state, arrays of a table) -> answers` with rewards of 0; jittable."""


class ScoredAnswers(NamedTuple):
    """Answers with rewards of the host."""

    answers: Answers
    failed: jax.Array
    """bool `[answer]`: the call of the reward failed."""


def call_on_device(reward: Any, arrays: PyTree, answers: Answers) -> Answers:
    """Return answers with rewards by a jittable function.

    Raises:
        ValueError: it does not return one number for each.
    """
    fields = {name: jnp.asarray(x)[answers.example] for name, x in arrays.get("fields", {}).items()}
    examples = {**fields, "prompt": answers.prompt["tokens"]}
    called = (
        "in the reward, which is called with (examples, tokens, lengths) and must be jittable; a "
        "function of texts goes into rl.HostReward; examples has " + ", ".join(sorted(examples))
    )
    with annotate_errors(called):
        found = reward(examples, answers.tokens, answers.lengths)
    shape, wanted = getattr(found, "shape", None), answers.lengths.shape
    if shape != wanted:
        got = type(found).__name__ if shape is None else f"shape {list(shape)}"
        raise ValueError(
            "the reward function must return one number for each answer, an array [answer] = "
            f"{list(wanted)}; got {got}"
        )
    return answers._replace(reward=found.astype(jnp.float32))


@dataclasses.dataclass(frozen=True)
class Scorer:
    """A reward of the host, and what it needs to see texts."""

    reward: HostReward
    tokenizer: Any
    table: PromptTable
    config: GRPOConfig

    def score(self, answers: Answers) -> tuple[Any, Any]:
        """Return the rewards of answers, and whether their calls failed, `[answer]` each."""
        example, tokens, lengths = jax.device_get(
            (answers.example, answers.tokens, answers.lengths)
        )
        texts = [self._decode(row[:n]) for row, n in zip(tokens, lengths, strict=True)]
        groups = []
        for first in range(0, len(texts), self.config.group_size):
            last = first + self.config.group_size
            rows = example[first:last].tolist()
            prompts = [self.table.texts[row] for row in rows]
            groups.append(
                AnswerGroup(prompts, texts[first:last], [self.table.examples[r] for r in rows])
            )
        with span("reward"):
            return compute_host_rewards(self.reward, groups)

    def _decode(self, tokens: np.ndarray) -> str:
        ids = tokens.tolist()
        return str(self.tokenizer.decode(ids[:-1] if ids[-1] in self.config.stop else ids))


@dataclasses.dataclass(frozen=True)
class ScoredSource:
    """The source of a phase whose rewards are the host's: it samples when its phase needs data."""

    collect: Collect
    scorer: Scorer
    shapes: Answers
    """The shapes of the answers."""
    name: str

    @property
    def example(self) -> PyTree:
        """A prompt as inputs, `[1, time]`, to initialize a network with."""
        return self.scorer.table.first_inputs

    def training(self) -> Feed:
        """Return the feed that samples answers and scores them, once an epoch."""
        collect, arrays = jax.jit(self.collect), jax.device_put(dict(self.scorer.table.arrays))

        def pieces(
            state: TrainState, check: Check | None, position: None
        ) -> Iterator[tuple[ScoredAnswers, None]]:
            with trace_on_mesh(state):
                answers = collect(strip_host_fields(state), arrays)
            reward, failed = self.scorer.score(answers)
            yield ScoredAnswers(answers._replace(reward=reward), failed), None

        failed: Any = jax.ShapeDtypeStruct(self.shapes.reward.shape, bool)
        return Feed(
            pieces=pieces,
            example=ScoredAnswers(self.shapes, failed),
            rows=lambda piece, key: jnp.zeros(1, jnp.int32),
            batch=lambda piece, row: piece,
            verify=self._refuse_processes,
            batch_axis=0,
        )

    def evaluation(self) -> Feed:
        """Refuse: answers are no split with labels.

        Raises:
            TypeError: always.
        """
        raise TypeError("answers are no split to evaluate on: rl.evaluation_of_answers makes one")

    def _refuse_processes(self, state: TrainState, check: Check | None) -> None:
        if jax.process_count() > 1:
            raise ValueError(
                f"{self.name}: a HostReward is called in one process, and this run has "
                f"{jax.process_count()}: pass a jittable reward, or run on one host"
            )


def try_reward(
    reward: Any, tokenizer: Any, table: PromptTable, config: GRPOConfig, vocabulary: int
) -> None:
    """Call a reward on made-up answers to the first prompt, before anything is trained.

    They are random tokens, of 1 token to `config.length`.

    Raises:
        TypeError, ValueError: the reward is no function, or does not return a finite number for
            each; or whatever it raises.
    """
    count, numbers = config.group_size, np.random.default_rng(0)
    lengths = np.linspace(1, config.length, count).astype(np.int32)
    tokens = numbers.integers(0, vocabulary, (count, config.length), np.int32)
    tokens *= np.arange(config.length) < lengths[:, None]
    first = jnp.zeros(count, jnp.int32)
    answers = Answers(
        make_inputs(table.arrays, first),
        example=first,
        lesson=first,
        tokens=jnp.asarray(tokens),
        log_probs=jnp.zeros(tokens.shape),
        lengths=jnp.asarray(lengths),
        reward=jnp.zeros(count),
    )
    with annotate_errors("in trying the reward on made-up answers, before training"):
        if isinstance(reward, HostReward):
            Scorer(reward, tokenizer, table, config).score(answers)
            return
        require_function("the reward", reward, "(examples, tokens, lengths) -> rewards [answer]")
        found = jax.jit(lambda *given: call_on_device(reward, *given).reward)(table.arrays, answers)
        if not np.isfinite(found).all():
            raise ValueError(
                "the reward function must return a finite number for each answer; for answers of "
                f"{lengths.tolist()} random tokens it returned {np.asarray(found).tolist()}"
            )
