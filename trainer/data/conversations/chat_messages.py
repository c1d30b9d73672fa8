"""The messages of a conversation, and a check of what a user gives as such."""

from __future__ import annotations

from typing import Any

from trainer.checks.arguments import describe_value
from trainer.data.conversations.chat_template import END, START, Message


def require_messages(name: str, messages: Any) -> list[Message]:
    """Check messages `{"role": text, "content": text}`; a call of a tool may lack the content.

    Args:
        name: what errors call them.
        messages: what was given.

    Raises:
        ValueError: they are no list of messages, or it is empty.

    >>> require_messages("prompt", [{"role": "user"}])
    Traceback (most recent call last):
    ValueError: content of message 1 of prompt must be a text; got keys role
    """
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
