"""The forms of an example in a file of conversations, as texts with what is trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from trainer.checks.arguments import describe_value
from trainer.checks.suggestions import suggest_name
from trainer.data.conversations.assistant_spans import AnnotatedText, render_conversation
from trainer.data.conversations.chat_messages import require_messages
from trainer.data.conversations.chat_template import Message, split_marks
from trainer.data.conversations.text_tokenizer import TextTokenizer

CHAT_FORMS = (("messages",), ("prompt", "completion"), ("text",))
PAIR_FORMS = (("prompt", "chosen", "rejected"), ("chosen", "rejected"))

VARIABLES = ("tools", "documents")
"""Keys of an example that its chat template may read."""


@dataclasses.dataclass(frozen=True)
class ExampleReader:
    """Turns the objects of a file into texts with spans that are trained on."""

    who: str
    tokenizer: TextTokenizer
    everything: bool = False
    """Whether all is trained on, and not the assistant's text alone."""

    def read_chat(self, values: Mapping[str, Any]) -> AnnotatedText:
        """Read one of `{messages}`, `{prompt, completion}` and `{text}`.

        Raises:
            ValueError: it has another form, or the template fails.
        """
        form = _find_form(values, CHAT_FORMS, self.who)
        if form == ("messages",):
            return self._converse(values, (), require_messages("messages", values["messages"]))
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
            one, other = (require_messages(n, values[n]) for n in ("chosen", "rejected"))
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
            given = require_messages("prompt", prompt)
            return self._converse(values, given, require_messages(name, values[name]))
        before = _require_text("prompt", prompt)
        text = before + _require_text(name, values[name])
        return AnnotatedText(text, [(0 if self.everything else len(before), len(text))], False)

    def _converse(
        self, values: Mapping[str, Any], given: Sequence[Message], answers: Sequence[Message]
    ) -> AnnotatedText:
        template = self.tokenizer.require_template(self.who)
        variables = {name: values[name] for name in VARIABLES if name in values}
        messages = [*given, *answers]
        if self.everything:
            text, _ = split_marks(template.render(messages, variables=variables))
            return AnnotatedText(text, [(0, len(text))], rendered=True)
        return render_conversation(template, messages, given=len(given), variables=variables)


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


def _count_common(one: Sequence[Message], other: Sequence[Message]) -> int:
    """Return the number of messages with which both begin."""
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    return count
