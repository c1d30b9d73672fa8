"""Everything that is not training, as functions `(state, metrics) -> state` between epochs."""

from hooks.base import observe, reads, stateful, writes
from hooks.combining import chain, every, every_steps, on, once, when
from hooks.failing import background, guard
from trainer import Hook

__all__ = [
    "Hook",
    "background",
    "chain",
    "every",
    "every_steps",
    "guard",
    "observe",
    "on",
    "once",
    "reads",
    "stateful",
    "when",
    "writes",
]
