"""Which characters of a rendered conversation the assistant wrote."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from trainer.data.conversations.chat_template import ChatTemplate, Message, split_marks

Span = tuple[int, int]
"""The first character, and the one after the last."""

_REMEDY = (
    "mark the assistant's text in the template by {% generation %} and {% endgeneration %}, or let "
    'data.chat train on everything, train_on="all"'
)

_THOUGHTS_END = "</think>"
"""What ends the thoughts with which a content may begin; templates leave them out of earlier
answers."""


class AnnotatedText(NamedTuple):
    """A text, and what of it is trained on."""

    text: str
    spans: Sequence[Span]
    """In order, without overlap."""
    rendered: bool
    """Whether a template wrote it, and so its special tokens."""


def render_conversation(
    template: ChatTemplate, messages: Sequence[Message], *, given: int, variables: Mapping[str, Any]
) -> AnnotatedText:
    """Write a conversation as a text, and find the spans of the assistant's messages.

    Where the template marks them by `{% generation %}` blocks, these are the spans. Otherwise a
    message of the assistant reaches from the end of what the template writes for the messages
    before it, with the beginning of an answer, to the end of what it writes for the messages up to
    it. Both must begin the whole text. A template may write the last message in a special way, as
    Qwen 3's adds empty thoughts, and leaves the thoughts out of earlier answers: then the message
    is the longest ending of what the template writes for it that also continues the text.

    Args:
        template: of the model.
        messages: of the conversation.
        given: the number of messages at its beginning that are not trained on.
        variables: what else the template reads, such as `tools`.

    Returns:
        The text with its spans, from the end of the tag that begins an answer to the end of the
        tag that ends it.

    Raises:
        ValueError: the template fails, or a span cannot be found.

    >>> from trainer.data.conversations.chat_template import compile_template
    >>> template = compile_template(
    ...     "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
    ...     "{% if add_generation_prompt %}<assistant>{% endif %}", "the template", {}, "data.chat",
    ... )
    >>> pair = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
    >>> found = render_conversation(template, pair, given=0, variables={})
    >>> [found.text[start:end] for start, end in found.spans]
    ['2</>']
    """
    text, spans = split_marks(template.render(messages, variables=variables))
    written = _WrittenConversation(template, messages, variables, text)
    if template.marks_generation:
        if given:
            start = written.find_start(given, 0)
            spans = [span for span in spans if span[0] >= start]
        return AnnotatedText(text, spans, rendered=True)
    spans, end = [], 0
    for index in range(given, len(messages)):
        if messages[index]["role"] == "assistant":
            start = written.find_start(index, end)
            end = written.find_end(index, start)
            spans.append((start, end))
    return AnnotatedText(text, spans, rendered=True)


@dataclasses.dataclass(frozen=True)
class _WrittenConversation:
    """What a template wrote for messages, and writes for the first of them."""

    template: ChatTemplate
    messages: Sequence[Message]
    variables: Mapping[str, Any]
    text: str

    def find_start(self, index: int, after: int) -> int:
        """Return where the answer to the first messages begins.

        Args:
            index: the number of these messages.
            after: where the last answer among them ends, as far as it was sought; else 0.
        """
        before = self._write(index, prompt=True)
        if self.text.startswith(before):
            return len(before)
        # Earlier answers may be written in another way: what is between must be the same.
        tag, start = before.removeprefix(self._write(index)), after
        while after and tag not in ("", before) and (start := self.text.find(tag, start)) >= 0:
            start += len(tag)
            if before.endswith(self.text[after:start]):
                return start
        raise ValueError(
            f"{self.template.name} writes the first {index} messages in "
            f"another way when others follow, so the answer to them cannot be found: {_REMEDY}"
        )

    def find_end(self, index: int, start: int) -> int:
        """Return where a message of the assistant ends that begins at `start`."""
        through = self._write(index + 1)
        if self.text.startswith(through) and len(through) >= start:
            return len(through)
        message = through.removeprefix(self._write(index, prompt=True))
        answer = self.text[start:].lstrip()  # templates differ in the space before a content
        endings = (message[n:] for n in range(len(message)) if message[n] == answer[:1])
        ending = next((one for one in endings if answer.startswith(one)), "")
        content = self.messages[index].get("content") or ""
        said, shown = (one.rpartition(_THOUGHTS_END)[2].strip() for one in (content, ending))
        if ending and message != through and shown.startswith(said):
            return len(self.text) - len(answer) + len(ending)
        raise ValueError(
            f"{self.template.name} writes message {index + 1} in another way when "
            f"others follow, so what the assistant wrote cannot be found: {_REMEDY}"
        )

    def _write(self, count: int, *, prompt: bool = False) -> str:
        """Return what the template writes for the first messages alone."""
        messages = self.messages[:count]
        written = self.template.render(messages, prompt=prompt, variables=self.variables)
        return split_marks(written)[0]
