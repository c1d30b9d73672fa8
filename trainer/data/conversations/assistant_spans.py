"""Which characters of a rendered conversation the assistant wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from trainer.data.conversations.chat_template import END, START, ChatTemplate, Message, split_marks

Span = tuple[int, int]
"""The first character, and the one after the last."""

_REMEDY = (
    "mark the assistant's text in the template by {% generation %} and {% endgeneration %}, or let "
    'data.chat train on everything, train_on="all"'
)


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
    Qwen 3's adds empty thoughts: then the message's content and what ends it must be in place.

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
    if template.marks_generation:
        if given:
            start = len(_render_prompt(template, messages[:given], text, variables))
            spans = [span for span in spans if span[0] >= start]
        return AnnotatedText(text, spans, rendered=True)
    spans = []
    for index in range(given, len(messages)):
        if messages[index]["role"] == "assistant":
            spans.append(_find_span(template, messages, index, text, variables))
    return AnnotatedText(text, spans, rendered=True)


def _find_span(
    template: ChatTemplate,
    messages: Sequence[Message],
    index: int,
    text: str,
    variables: Mapping[str, Any],
) -> Span:
    start = len(_render_prompt(template, messages[:index], text, variables))
    through = template.render(messages[: index + 1], variables=variables)
    if text.startswith(through) and len(through) >= start:
        return start, len(through)
    content = messages[index].get("content") or ""
    core = content.strip()
    # Marks within the space around a content stay where a template strips it.
    marked = {**messages[index], "content": content.replace(core, f"{START}{core}{END}", 1)}
    rendered = template.render([*messages[:index], marked], variables=variables)
    answer = text[start:].lstrip()
    ending = (core + rendered.rpartition(END)[2]).lstrip()
    found = ending and END in rendered  # of an empty answer the ending is all there is
    if found and split_marks(rendered)[0] == through and answer.startswith(ending):
        return start, len(text) - len(answer) + len(ending)
    raise ValueError(
        f"{template.name} writes message {index + 1} in another way when "
        f"others follow, so what the assistant wrote cannot be found: {_REMEDY}"
    )


def _render_prompt(
    template: ChatTemplate, messages: Sequence[Message], text: str, variables: Mapping[str, Any]
) -> str:
    """Return what comes before an answer to these messages, the beginning of a whole text."""
    before, _ = split_marks(template.render(messages, prompt=True, variables=variables))
    if text.startswith(before):
        return before
    raise ValueError(
        f"{template.name} writes the first {len(messages)} messages in "
        f"another way when others follow, so the answer to them cannot be found: {_REMEDY}"
    )
