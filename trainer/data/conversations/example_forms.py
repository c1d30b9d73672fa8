"""The forms of an example in a file of conversations, as texts with what is trained on."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from trainer.checks.arguments import describe_value
from trainer.checks.paths import to_absolute_path
from trainer.checks.suggestions import suggest_name
from trainer.data.conversations.assistant_spans import AnnotatedText, render_conversation
from trainer.data.conversations.chat_template import (
    END,
    START,
    ChatTemplate,
    Message,
    compile_template,
    split_marks,
)
from trainer.data.conversations.text_tokenizer import TextTokenizer
from trainer.host.safe_open import read_bytes

CHAT_FORMS = (("messages",), ("prompt", "completion"), ("text",))
PAIR_FORMS = (("prompt", "chosen", "rejected"), ("chosen", "rejected"))

VARIABLES = ("tools", "documents")
"""Keys of an example that its chat template may read."""


@dataclasses.dataclass(frozen=True)
class ExampleReader:
    """Turns the objects of a file into texts with spans that are trained on."""

    who: str
    template: ChatTemplate | None
    no_template: str
    """Why there is no template, and the remedy."""
    everything: bool = False
    """Whether all is trained on, and not the assistant's text alone."""

    def read_chat(self, values: Mapping[str, Any]) -> AnnotatedText:
        """Read one of `{messages}`, `{prompt, completion}` and `{text}`.

        Raises:
            ValueError: it has another form, or the template fails.
        """
        form = _find_form(values, CHAT_FORMS, self.who)
        if form == ("messages",):
            return self._converse(values, (), _require_messages("messages", values["messages"]))
        if form == ("text",):
            text = _require_text("text", values["text"])
            return AnnotatedText(text, [(0, len(text))], rendered=False)
        return self._continue(values, values["prompt"], "completion")

    def read_pair(self, values: Mapping[str, Any]) -> tuple[AnnotatedText, AnnotatedText]:
        """Read `{prompt, chosen, rejected}`, or whole conversations `{chosen, rejected}`.

        Returns:
            (prompt and chosen, prompt and rejected).

        Raises:
            ValueError: it has another form, or the template fails.
        """
        _find_form(values, PAIR_FORMS, self.who)
        prompt, whole = values.get("prompt"), isinstance(values["chosen"], list)
        if whole and not isinstance(prompt, list):  # the prompt, if any, is in both once more
            one, other = (_require_messages(n, values[n]) for n in ("chosen", "rejected"))
            given = _count_common(one, other)
            if not 0 < given < min(len(one), len(other)):
                raise ValueError(
                    "chosen and rejected must begin with the same messages and end differently, "
                    f"if prompt is no list of messages; they share {given} of {len(one)} and "
                    f"{len(other)} messages"
                )
            common, answers = one[:given], (one[given:], other[given:])
            chosen, rejected = (self._converse(values, common, answer) for answer in answers)
        elif prompt is None:
            raise ValueError('an example of texts needs "prompt" beside "chosen" and "rejected"')
        else:
            chosen, rejected = (self._continue(values, prompt, n) for n in ("chosen", "rejected"))
        return chosen, rejected

    def _continue(self, values: Mapping[str, Any], prompt: Any, name: str) -> AnnotatedText:
        """Read a prompt and what continues it, both texts or both messages."""
        if isinstance(prompt, list):
            given = _require_messages("prompt", prompt)
            return self._converse(values, given, _require_messages(name, values[name]))
        before = _require_text("prompt", prompt)
        text = before + _require_text(name, values[name])
        return AnnotatedText(text, [(0 if self.everything else len(before), len(text))], False)

    def _converse(
        self, values: Mapping[str, Any], given: Sequence[Message], answers: Sequence[Message]
    ) -> AnnotatedText:
        if self.template is None:
            raise ValueError(self.no_template)
        variables = {name: values[name] for name in VARIABLES if name in values}
        messages = [*given, *answers]
        if self.everything:
            text, _ = split_marks(self.template.render(messages, variables=variables))
            return AnnotatedText(text, [(0, len(text))], rendered=True)
        return render_conversation(self.template, messages, given=len(given), variables=variables)


def make_reader(
    tokenizer: TextTokenizer,
    template: str | os.PathLike[str] | None,
    who: str,
    *,
    everything: bool = False,
) -> ExampleReader:
    """Return a reader with the given template, or else with the tokenizer's.

    Args:
        tokenizer: with what lies beside its file.
        template: of a chat, as a text with `{%` or `{{`, or the path of a file; None: the
            tokenizer's.
        who: what reads, for messages.
        everything: train on all, and not on the assistant's text alone.

    Raises:
        ImportError: Jinja is not installed.
        OSError: the template's file is missing or cannot be read.
        ValueError: the template is none.
    """
    text, name = tokenizer.template, f"the chat template of {tokenizer.name}"
    if isinstance(template, str) and ("{%" in template or "{{" in template):
        text, name = template, "the given chat template"
    elif template is not None:
        file = to_absolute_path(template, who)
        text, name = read_bytes(file, follow=True).decode(), f"the chat template of {file}"
    compiled = None
    if text is not None:
        compiled = compile_template(text, name, tokenizer.special_tokens, who)
    no_template = (
        f"{who} needs a chat template to write messages, and there is none beside "
        f"{tokenizer.name}: pass template=, or a directory with chat_template.jinja or with "
        "chat_template in tokenizer_config.json"
    )
    return ExampleReader(who, compiled, no_template, everything)


def _find_form(
    values: Mapping[str, Any], forms: Sequence[tuple[str, ...]], who: str
) -> tuple[str, ...]:
    """Return the one form whose keys an example has."""
    found = [form for form in forms if values.keys() >= {*form}]
    found = [one for one in found if not any({*one} < {*other} for other in found)]
    if len(found) == 1:
        return found[0]
    listed = " or ".join("{" + ", ".join(f'"{key}": ...' for key in form) + "}" for form in forms)
    names = [name for form in forms for name in form]
    unknown = [name for name in values if name not in names]
    hints = "".join(suggest_name(name, names) for name in unknown) if not found else ""
    raise ValueError(
        f"{who} reads examples {listed}, and an example of one form; this one has "
        f"{', '.join(map(repr, values)) or 'no keys'}.{hints}"
    )


def _require_text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a text; got {describe_value(value)}")
    return value


def _require_messages(name: str, messages: Any) -> list[Message]:
    """Check messages `{"role": text, "content": text}`; a call of a tool may lack the content."""
    if not isinstance(messages, list) or not messages:
        form = '[{"role": ..., "content": ...}, ...]'
        got = "an empty one" if messages == [] else describe_value(messages)
        raise ValueError(f"{name} must be a list of messages, {form}; got {got}")
    for number, message in enumerate(messages, 1):
        where = f"message {number} of {name}"
        if not isinstance(message, dict):
            raise ValueError(
                f'{where} must have "role" and "content"; got {describe_value(message)}'
            )
        for key in ("role", "content"):
            value = message.get(key)
            if value is None and key == "content" and message.get("tool_calls"):
                continue
            if not isinstance(value, str):
                got = describe_value(value) if key in message else f"keys {', '.join(message)}"
                raise ValueError(f"{key} of {where} must be a text; got {got}")
            if START in value or END in value:
                raise ValueError(f"{key} of {where} must not hold U+FDD0 and U+FDD1: remove them")
    return messages


def _count_common(one: Sequence[Message], other: Sequence[Message]) -> int:
    """Return the number of messages with which both begin."""
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    return count
