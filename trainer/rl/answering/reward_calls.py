"""Calls of rewards: on the device while a phase is traced, or on the host between its parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trainer.checks.arguments import require_function
from trainer.data.prompts.continuations import decode_continuation
from trainer.data.prompts.left_padding import make_inputs
from trainer.data.source import Check, Feed
from trainer.host.exception_notes import annotate_errors
from trainer.host.exchange import exchange_words
from trainer.host.time_spans import span
from trainer.placement.constraints import replicate, trace_on_mesh
from trainer.rl.answering.answers import Answers
from trainer.rl.answering.grpo_config import GRPOConfig
from trainer.rl.answering.host_rewards import AnswerGroup, HostReward, compute_host_rewards
from trainer.rl.answering.prompt_tables import PromptTable
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

    def score_together(self, answers: Answers) -> tuple[Any, Any]:
        """Return what `score` does; each process scores groups of its own, and all must call it.

        Args:
            answers: the same on every process, and whole on each.

        Raises:
            FailedElsewhereError: a reward failed on another process.
        """
        count, processes = len(answers.lengths), jax.process_count()
        owner = np.arange(count) // self.config.group_size % processes
        rows = [np.flatnonzero(owner == process) for process in range(processes)]
        here = rows[jax.process_index()]
        found: np.ndarray = np.zeros((2, max(map(len, rows))), np.float32)
        failure: Exception | None = None
        try:
            if len(here):
                found[:, : len(here)] = self.score(answers, here)
        except Exception as error:
            failure = error
        words = exchange_words("the reward", found.ravel().view(np.uint32), failure)
        rewards: np.ndarray = np.zeros(count, np.float32)
        failed: np.ndarray = np.zeros(count, bool)
        for theirs, message in zip(rows, words, strict=True):
            numbers = np.ascontiguousarray(message).view(np.float32).reshape(2, -1)
            rewards[theirs], failed[theirs] = numbers[:, : len(theirs)]
        return rewards, failed

    def score(self, answers: Answers, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the rewards of some answers, and whether their calls failed, `[row]` each.

        Args:
            answers: groups, side by side.
            rows: indices of the answers of whole groups, int `[row]`.
        """
        example, tokens, lengths = (
            x[rows] for x in jax.device_get((answers.example, answers.tokens, answers.lengths))
        )
        written = zip(example.tolist(), tokens, lengths, strict=True)
        texts = [self._decode(prompt, row[:n].tolist()) for prompt, row, n in written]
        groups = []
        for first in range(0, len(texts), self.config.group_size):
            last = first + self.config.group_size
            asked = example[first:last].tolist()
            prompts = [self.table.texts[index] for index in asked]
            examples = [self.table.examples[index] for index in asked]
            groups.append(AnswerGroup(prompts, texts[first:last], examples))
        with span("reward"):
            return compute_host_rewards(self.reward, groups)

    def _decode(self, prompt: int, tokens: list[int]) -> str:
        """Return the text of an answer to a prompt of the table, without what stopped it."""
        arrays = self.table.arrays
        given = arrays["tokens"][prompt][-arrays["lengths"][prompt] :].tolist()
        ended = tokens[-1] in (self.config.stop or ())
        return decode_continuation(self.tokenizer, given, tokens[:-1] if ended else tokens)


@dataclasses.dataclass(frozen=True)
class ScoredSource:
    """The source of a phase whose rewards are the host's: it samples when its phase needs data."""

    collect: Collect
    scorer: Scorer
    shapes: Answers
    """The shapes of the answers."""

    @property
    def example(self) -> PyTree:
        """A prompt as inputs, `[1, time]`, to initialize a network with."""
        return self.scorer.table.first_inputs

    def training(self) -> Feed:
        """Return the feed that samples answers and scores them, once an epoch."""
        read = self.scorer.table.source.training().pieces
        collect = jax.jit(lambda state, arrays: replicate(self.collect(state, arrays)))

        def pieces(
            state: TrainState, check: Check | None, position: None
        ) -> Iterator[tuple[ScoredAnswers, None]]:
            ((arrays, _),) = read(state, None, None)
            with trace_on_mesh(state):
                answers = collect(strip_host_fields(state), arrays)
            reward, failed = self.scorer.score_together(answers)
            yield ScoredAnswers(answers._replace(reward=reward), failed), None

        failed: Any = jax.ShapeDtypeStruct(self.shapes.reward.shape, bool)
        return Feed(
            pieces=pieces,
            example=ScoredAnswers(self.shapes, failed),
            rows=lambda piece, key: jnp.zeros(1, jnp.int32),
            batch=lambda piece, row: piece,
            verify=lambda state, check: None,
            batch_axis=0,
        )

    def evaluation(self) -> Feed:
        """Refuse: answers are no split with labels.

        Raises:
            TypeError: always.
        """
        raise TypeError("answers are no split to evaluate on: rl.evaluation_of_answers makes one")


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
            Scorer(reward, tokenizer, table, config).score(answers, np.arange(count))
            return
        require_function("the reward", reward, "(examples, tokens, lengths) -> rewards [answer]")
        found = jax.jit(lambda *given: call_on_device(reward, *given).reward)(table.arrays, answers)
        if not np.isfinite(found).all():
            raise ValueError(
                "the reward function must return a finite number for each answer; for answers of "
                f"{lengths.tolist()} random tokens it returned {np.asarray(found).tolist()}"
            )
