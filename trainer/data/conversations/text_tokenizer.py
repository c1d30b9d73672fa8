"""A tokenizer of texts and messages, with the special tokens and the template of a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from trainer.data.conversations.chat_messages import require_messages
from trainer.data.conversations.chat_template import ChatTemplate, Message, split_marks


@dataclasses.dataclass(frozen=True, eq=False)
class TextTokenizer:
    """A tokenizer with what the files beside it say, made by `data.open_tokenizer`."""

    name: str
    """What messages call it."""
    encoder: Any = dataclasses.field(repr=False)
    """A `tokenizers.Tokenizer` that neither adds special tokens, pads nor truncates."""
    before: tuple[int, ...]
    """The special tokens that begin a text, such as `<s>`."""
    eos: int | None
    """The token that ends a text; None if the files name none."""
    stop: tuple[int, ...]
    """The tokens that end an answer, in order; () if none is known. These are `eos`, what
    `generation_config.json` names, and the special token that the template writes after a message
    of the assistant."""
    vocabulary: int
    """One more than the largest token."""
    special_tokens: Mapping[str, str] | None
    """The special tokens by name, `bos_token`; None if there is no `tokenizer_config.json`."""
    template: ChatTemplate | None = dataclasses.field(repr=False)
    """The chat template; None if there is none."""

    def encode(
        self,
        prompt: str | Sequence[Message],
        *,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Any] | None = None,
    ) -> list[int]:
        """Return the token ids of a prompt.

        Special tokens are there once: a text begins with `before`, which is not repeated if the
        text has them already; of messages they are those that the template writes.

        Args:
            prompt: a text, or messages, for which see `render_prompt`.
            tools, documents: what else the template may read.

        Raises:
            ValueError: there is no template, it fails, or these are no messages.
        """
        if not isinstance(prompt, str):
            text = self.render_prompt(prompt, tools=tools, documents=documents)
            return list(self.encoder.encode(text).ids)
        ids = list(self.encoder.encode(prompt).ids)
        begun = tuple(ids[: len(self.before)]) == self.before
        return ids if begun else [*self.before, *ids]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens."""
        return str(self.encoder.decode(list(ids)))

    def render_prompt(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Any] | None = None,
    ) -> str:
        """Write messages by the chat template, up to the beginning of an answer.

        This is `apply_chat_template(messages, add_generation_prompt=True, tokenize=False)` of
        transformers.

        Args:
            messages: a list of `{"role": ..., "content": ...}`.
            tools, documents: what else the template may read.

        Raises:
            ValueError: there is no template, it fails, or these are no messages.
        """
        template = self.require_template("a prompt of messages")
        given = require_messages("a prompt", messages)
        variables = {"tools": tools, "documents": documents}
        return split_marks(template.render(given, prompt=True, variables=variables))[0]

    def require_template(self, who: str) -> ChatTemplate:
        """Return the chat template.

        Raises:
            ValueError: there is none.
        """
        if self.template is None:
            raise ValueError(
                f"{who} needs a chat template to write messages, and there is none beside "
                f"{self.name}: pass template=, or a directory with chat_template.jinja or with "
                "chat_template in tokenizer_config.json"
            )
        return self.template
