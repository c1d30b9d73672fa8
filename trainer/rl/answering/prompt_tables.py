"""Prompts as arrays: tokenized, left-padded, and drawn by lesson."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trainer.checks.arguments import describe_value
from trainer.data.arrays import Arrays
from trainer.host.exception_notes import annotate_errors
from trainer.losses.loss import check_range
from trainer.state import PyTree

FORM = '["2+3=", ...], [{"prompt": "2+3=", "sum": 5}, ...], or a dict of such by lesson'
"""How prompts are written, for messages."""


@dataclasses.dataclass(frozen=True)
class PromptTable:
    """All prompts, those of a lesson side by side."""

    lessons: tuple[str, ...]
    """Names of the lessons; () if there are none."""
    texts: tuple[str, ...]
    """The prompts as they are shown."""
    examples: tuple[Mapping[str, Any], ...]
    """The other fields of each prompt."""
    counts: tuple[int, ...]
    """Number of prompts of each lesson, or of all."""
    arrays: Mapping[str, Any]
    """`tokens` int32 `[prompt, time]`, left-padded; `lengths` and `lesson`, its index, int32
    `[prompt]`; `fields`, the other fields that are numbers, `[prompt, ...]` by name, if any."""

    @property
    def source(self) -> Arrays:
        """The arrays as the source of a phase, which reads all of them at once."""
        return Arrays(self.arrays, batch_size=len(self.texts))

    @property
    def first_inputs(self) -> dict[str, jax.Array]:
        """The first prompt as inputs, `[1, time]`, to initialize a network with."""
        arrays = {name: self.arrays[name][:1] for name in ("tokens", "lengths")}
        return make_inputs(arrays, jnp.zeros(1, jnp.int32))

    @property
    def longest(self) -> int:
        """Index of the longest prompt."""
        return int(np.argmax(self.arrays["lengths"]))


def draw_prompts(
    key: jax.Array, counts: Sequence[int], weights: jax.Array, draws: int
) -> jax.Array:
    """Draw prompts: a lesson in proportion to its weight, and any prompt of it.

    Args:
        key: () typed key.
        counts: number of prompts of each lesson.
        weights: of the lessons, float32 `[lesson]`; at weight 0 none is drawn.
        draws: number of prompts to draw.

    Returns:
        Their indices, int32 `[draws]`.
    """
    lesson_key, row_key = jax.random.split(key)
    lesson = jax.random.categorical(lesson_key, jnp.log(weights), shape=(draws,))
    offset = jax.random.randint(row_key, (draws,), 0, jnp.array(counts)[lesson])
    return jnp.array([0, *np.cumsum(counts)[:-1]])[lesson] + offset


def make_inputs(arrays: PyTree, rows: jax.Array) -> dict[str, jax.Array]:
    """Return prompts as inputs of a language network, `[row, time]` each, left-padded.

    `segments` is 0 on the padding and 1 on the prompt, whose `positions` count from 0.

    >>> arrays = {"tokens": jnp.array([[0, 7, 8]]), "lengths": jnp.array([2])}
    >>> inputs = make_inputs(arrays, jnp.array([0]))
    >>> inputs["segments"].tolist(), inputs["positions"].tolist()
    ([[0, 1, 1]], [[0, 0, 1]])
    """
    tokens = jnp.asarray(arrays["tokens"])[rows]
    lengths = jnp.asarray(arrays["lengths"])[rows]
    place = jnp.arange(tokens.shape[1]) - (tokens.shape[1] - lengths)[:, None]
    return {
        "tokens": tokens,
        "segments": (place >= 0).astype(jnp.int32),
        "positions": jnp.maximum(place, 0).astype(jnp.int32),
    }


def check_prompt_tokens(
    network: Any, params: PyTree, model_state: PyTree, table: PromptTable
) -> None:
    """Raise ValueError for a token of a prompt that is not in the network's vocabulary.

    Of the variables only shapes and dtypes are read.
    """

    def apply(params: PyTree, model_state: PyTree) -> Any:
        inputs = table.first_inputs
        return network.apply(params, model_state, inputs, key=None, train=False)[0]

    vocabulary = jax.eval_shape(apply, params, model_state).shape[-1]
    check_range("tokens of prompts", table.arrays["tokens"], vocabulary, "tokens")


def tabulate_prompts(tokenizer: Any, prompts: Any, who: str) -> PromptTable:
    """Tokenize prompts, and arrange them in a table.

    Args:
        tokenizer: with `encode(text)`, which returns token ids or a record with `ids`.
        prompts: see `grpo`.
        who: what needs them, for messages.

    Raises:
        TypeError, ValueError: they are no prompts, a lesson or a prompt is empty, or a lesson's
            name is no word.

    >>> from types import SimpleNamespace
    >>> letters = SimpleNamespace(encode=lambda text: [ord(x) for x in text])
    >>> table = tabulate_prompts(letters, ["a", {"prompt": "bc", "size": 2}], "grpo")
    >>> table.arrays["tokens"].tolist(), table.examples
    ([[0, 97], [98, 99]], ({}, {'size': 2}))
    """
    lessons = prompts if isinstance(prompts, Mapping) else {"": prompts}
    if not lessons:
        raise ValueError(f"{who} needs prompts, {FORM}; got an empty dict")
    named = isinstance(prompts, Mapping)
    if named and (wrong := [x for x in lessons if not isinstance(x, str) or not x or "/" in x]):
        raise ValueError(f"a lesson's name must be a word without '/', for metrics; got {wrong}")
    texts, tokens, examples, counts = [], [], [], []
    for lesson, listed in lessons.items():
        where = f" of lesson {lesson!r}" if named else ""
        if isinstance(listed, str | Mapping) or not isinstance(listed, Sequence):
            raise TypeError(f"{who} takes prompts{where} as {FORM}; got {describe_value(listed)}")
        if not listed:
            raise ValueError(f"{who} needs at least one prompt{where}; got none")
        for number, entry in enumerate(listed):
            with annotate_errors(f"in prompt {number}{where}"):
                text, ids, fields = _read_prompt(tokenizer, entry, who)
            texts.append(text)
            tokens.append(ids)
            examples.append(fields)
        counts.append(len(listed))
    lengths = np.array([len(ids) for ids in tokens], np.int32)
    padded = np.zeros((len(tokens), lengths.max()), np.int32)
    for row, ids in zip(padded, tokens, strict=True):
        row[len(row) - len(ids) :] = ids
    arrays: dict[str, Any] = {
        "tokens": padded,
        "lengths": lengths,
        "lesson": np.repeat(np.arange(len(counts)), counts).astype(np.int32),
    }
    if fields := _stack_numbers(examples):
        arrays["fields"] = fields
    names = tuple(lessons) if named else ()
    return PromptTable(names, tuple(texts), tuple(examples), tuple(counts), arrays)


def _read_prompt(tokenizer: Any, entry: Any, who: str) -> tuple[str, list[int], dict[str, Any]]:
    """Return the text of a prompt, its tokens, and its other fields."""
    if isinstance(entry, Mapping) and "prompt" not in entry:
        raise ValueError(f"{who}: a prompt as a dict needs 'prompt'; got {sorted(entry)}")
    prompt = entry["prompt"] if isinstance(entry, Mapping) else entry
    others = {k: v for k, v in entry.items() if k != "prompt"} if isinstance(entry, Mapping) else {}
    if isinstance(prompt, str):
        encoded = tokenizer.encode(prompt)
        ids = [int(token) for token in getattr(encoded, "ids", encoded)]
        text = prompt
    elif isinstance(prompt, Sequence | np.ndarray) and all(
        isinstance(token, int | np.integer) for token in prompt
    ):
        ids = [int(token) for token in prompt]
        text = tokenizer.decode(ids) if ids else ""
    else:
        raise TypeError(
            f"{who}: a prompt is a text, or its token ids; got {describe_value(prompt)}: render "
            "messages by the chat template first"
        )
    if not ids:
        raise ValueError(f"{who}: a prompt needs at least one token; got {prompt!r:.100}")
    return text, ids, others


def _stack_numbers(examples: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Stack the fields that all examples have, as numbers of one shape."""
    stacked = {}
    for name in examples[0]:
        if not all(name in example for example in examples):
            continue
        columns = [np.asarray(example[name]) for example in examples]
        if len({column.shape for column in columns}) > 1:
            continue
        array = np.stack(columns)
        if array.dtype.kind in "biuf":
            dtype = {"b": bool, "f": np.float32}.get(array.dtype.kind, np.int32)
            stacked[name] = array.astype(dtype)
    return stacked
