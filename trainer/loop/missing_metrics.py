"""A metric that a hook reads and nothing writes before it: what to say, and what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trainer.checks.suggestions import suggest_name
from trainer.hook import Hook


def format_missing_metric(
    hook: Hook, key: str, known: Sequence[str], later: Mapping[str, tuple[str, str]]
) -> str:
    """Return the message of an error: who reads what, what there is, and the remedy.

    Args:
        hook: that reads it.
        key: of the metric.
        known: metrics that are there when it runs.
        later: event and writer of those that are written after it.

    >>> format_missing_metric(Hook(lambda s, m: s, "mine"), "val/f1", ["val/loss"], {})
    "hook 'mine' at 'epoch' reads 'val/f1', which nothing writes before it (there is: val/loss).
    What measures val/... gives no other: name one of these"
    """
    shown = [name for name in known if not name.startswith("time/")]
    remedy = suggest_name(key, [*known, *later])
    prefix = key.partition("/")[0] + "/"
    if key in later:
        event, writer = later[key]
        remedy = f" The {writer} writes it at {event!r}, after the {hook.stage} hook"
        remedy += f" {hook.name!r}: place it before, in the same stage"
    elif not remedy and any(name.startswith(prefix) for name in shown):
        remedy = f" What measures {prefix}... gives no other: name one of these"
    elif not remedy:
        what = "evaluate(...)" if key.startswith("val") else "the hook that writes it"
        remedy = f" Place {what} before {hook.name!r} in the chain"
    return (
        f"hook {hook.name!r} at {hook.at!r} reads {key!r}, which nothing writes before "
        f"it (there is: {', '.join(shown) or 'nothing'}).{remedy}"
    )
