"""Prompts as arrays: tokenized, left-padded, and drawn by lesson."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trainer.data.arrays import Arrays
from trainer.data.conversations.example_forms import VARIABLES
from trainer.data.prompts.left_padding import make_inputs, pad_prompts
from trainer.data.prompts.prompt_encoding import encode_prompt, require_prompts
from trainer.host.exception_notes import annotate_errors

FORM = (
    '["2+3=", ...], [{"prompt": "2+3=", "sum": 5}, ...], where a prompt may be a list of messages '
    '[{"role": ..., "content": ...}], or a dict of such by lesson'
)
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


def tabulate_prompts(tokenizer: Any, prompts: Any, who: str) -> PromptTable:
    """Tokenize prompts, and arrange them in a table.

    Args:
        tokenizer: from `prepare_tokenizer`.
        prompts: see `grpo`. The template of messages reads `tools` and `documents` among the
            fields.
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
    prompts_read, examples, counts = [], [], []
    for lesson, listed in lessons.items():
        where = f" of lesson {lesson!r}" if named else ""
        require_prompts(listed, who, FORM, where)
        for number, entry in enumerate(listed):
            with annotate_errors(f"in prompt {number}{where}"):
                prompt, fields = _split_fields(entry, who)
                variables = {name: fields[name] for name in VARIABLES if name in fields}
                prompts_read.append(encode_prompt(tokenizer, prompt, who, variables))
            examples.append(fields)
        counts.append(len(listed))
    arrays: dict[str, Any] = {
        **pad_prompts([prompt.tokens for prompt in prompts_read]),
        "lesson": np.repeat(np.arange(len(counts)), counts).astype(np.int32),
    }
    if fields := _stack_numbers(examples):
        arrays["fields"] = fields
    names = tuple(lessons) if named else ()
    texts = tuple(prompt.text for prompt in prompts_read)
    return PromptTable(names, texts, tuple(examples), tuple(counts), arrays)


def _split_fields(entry: Any, who: str) -> tuple[Any, dict[str, Any]]:
    """Return a prompt, and its other fields."""
    if not isinstance(entry, Mapping):
        return entry, {}
    if "prompt" not in entry:
        raise ValueError(f"{who}: a prompt as a dict needs 'prompt'; got {sorted(entry)}")
    return entry["prompt"], {name: value for name, value in entry.items() if name != "prompt"}


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
