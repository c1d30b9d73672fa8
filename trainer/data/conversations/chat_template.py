"""Chat templates: the Jinja programs that write messages as one text."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trainer.host.extras import require_extra

Message = Mapping[str, Any]
"""`role` and `content`, and what else a template reads: `tool_calls`, `name`."""

START, END = "\ufdd0", "\ufdd1"
"""Noncharacters of Unicode that surround what a `{% generation %}` block wrote; contents must not
hold them."""

_GENERATION = re.compile(r"(\{%[-+]?)\s*generation\s*([-+]?%\})")
_END_GENERATION = re.compile(r"(\{%[-+]?)\s*endgeneration\s*([-+]?%\})")


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A compiled chat template."""

    name: str
    """What messages call it."""
    marks_generation: bool
    """Whether it surrounds the assistant's text by `{% generation %}` blocks."""
    compiled: Callable[..., str]
    """Called with `messages`, `tools`, `documents` and `add_generation_prompt`."""
    literals: frozenset[str]
    """The texts in its expressions, among them the roles that it tells apart."""

    def render(
        self, messages: Sequence[Message], *, prompt: bool = False, variables: Mapping[str, Any]
    ) -> str:
        """Write messages as one text, in which `START` and `END` surround generation blocks.

        Args:
            messages: of a conversation.
            prompt: end with the beginning of the assistant's next message.
            variables: what else the template reads, such as `tools`.

        Raises:
            ValueError: the template fails, or refuses the messages.
        """
        known = {"tools": None, "documents": None, **variables}
        try:
            return self.compiled(messages=messages, add_generation_prompt=prompt, **known)
        except Exception as error:  # a template is a program, and may fail in any way
            reason, remedy = str(error) or type(error).__name__, ""
            if "strftime_now" in reason:
                remedy = (
                    ": it asks for today's date, so the data would differ from day to day; pass "
                    "template= with a fixed date"
                )
            raise ValueError(f"{self.name} fails: {reason}{remedy}") from error


def compile_template(
    text: str, name: str, special_tokens: Mapping[str, str] | None, who: str
) -> ChatTemplate:
    """Compile a chat template in a sandbox, with the names that such templates use.

    These are `messages`, `tools`, `documents`, `add_generation_prompt`, the special tokens
    (`bos_token`), `raise_exception` and the filter `tojson`. `strftime_now` is not defined, since
    data must not depend on the date: templates that allow for this use a date of their own.

    Args:
        text: of the template.
        name: what messages call it, `the chat template of ...`.
        special_tokens: by name; None if they are not known.
        who: what needs it, for messages.

    Raises:
        ImportError: Jinja is not installed.
        ValueError: the template is no Jinja, or reads a special token although none is known.

    >>> template = compile_template(
    ...     "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}",
    ...     "the template", {"eos_token": "</s>"}, "data.chat",
    ... )
    >>> template.render([{"role": "user", "content": "hello"}], variables={})
    'user: hello</s>'
    """
    with require_extra("language", who, "jinja2"):
        import jinja2
        import jinja2.meta
        import jinja2.nodes
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["mark_generation"] = _mark_generation
    source = _GENERATION.sub(r"\1 call mark_generation() \2", text)
    source = _END_GENERATION.sub(r"\1 endcall \2", source)
    try:
        parsed = environment.parse(source)
        read = jinja2.meta.find_undeclared_variables(parsed)
        constants = [node.value for node in parsed.find_all(jinja2.nodes.Const)]
        template = environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(
            f"{name} must be a Jinja template; line {error.lineno}: {error}"
        ) from error
    unknown = sorted(one for one in read if one.endswith("_token"))
    if special_tokens is None and unknown:
        raise ValueError(
            f"{name} writes {', '.join(unknown)}, which only a "
            f"tokenizer_config.json names: pass {who} a directory that has one"
        )

    def render(**variables: Any) -> str:
        return template.render(**(special_tokens or {}), **variables)

    literals = frozenset(value for value in constants if isinstance(value, str))
    return ChatTemplate(name, source != text, render, literals)


def split_marks(rendered: str) -> tuple[str, list[tuple[int, int]]]:
    """Remove `START` and `END`, and return the text and the spans that they surrounded.

    >>> split_marks(f"user: a bot: {START}b{END}.")
    ('user: a bot: b.', [(13, 14)])
    """
    spans, text = [], ""
    for part in rendered.split(START):
        inside, end, outside = part.partition(END)
        if end:
            spans.append((len(text), len(text) + len(inside)))
        text += inside + outside
    return text, spans


def _mark_generation(caller: Callable[[], str]) -> str:
    return f"{START}{caller()}{END}"


def _raise_exception(message: str) -> None:
    raise ValueError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON as it is: Jinja's own filter writes `<` and others for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
