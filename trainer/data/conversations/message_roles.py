"""Roles of messages: those that are known, and what an unknown one probably means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trainer.checks.suggestions import suggest_name
from trainer.data.conversations.chat_template import ChatTemplate

ROLES = ("system", "developer", "user", "assistant", "tool")
"""Roles that are known whatever the template; only the assistant's messages are trained on."""

FIELDS = ("messages", "prompt", "completion", "chosen", "rejected")
"""Keys of an example that may hold messages."""


def list_roles(values: Mapping[str, Any]) -> list[str]:
    """Return the roles of the messages of an example, whatever its form; [] if it has none.

    >>> list_roles({"prompt": [{"role": "user", "content": "a"}], "completion": "b"})
    ['user']
    """
    lists = (values[name] for name in FIELDS if isinstance(values.get(name), list))
    found = (one.get("role") for messages in lists for one in messages if isinstance(one, dict))
    return [role for role in found if isinstance(role, str)]


def find_unknown_roles(values: Mapping[str, Any], template: ChatTemplate | None) -> Iterator[str]:
    """Yield the roles of an example that neither `ROLES` nor the template names.

    Raises:
        ValueError: such a role is similar to a known one.

    >>> [*find_unknown_roles({"messages": [{"role": "narrator", "content": "a"}]}, None)]
    ['narrator']
    >>> [*find_unknown_roles({"messages": [{"role": "assitant", "content": "a"}]}, None)]
    Traceback (most recent call last):
    ValueError: the role 'assitant' of message 1 is not known. Did you mean 'assistant'? ...
    """
    named = template.literals if template else frozenset()
    for number, role in enumerate(list_roles(values), 1):
        if role in ROLES or role in named:
            continue
        if similar := suggest_name(role, ROLES):
            raise ValueError(
                f"the role {role!r} of message {number} is not known.{similar} Known are "
                f"{', '.join(ROLES)}, and what the chat template names: let it name a role of "
                "your own"
            )
        yield role
