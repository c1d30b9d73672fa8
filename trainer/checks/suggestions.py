"""Names that are looked up and not found: which of those that exist was probably meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from trainer.host import escaping

MANY = 20
"""How many names a message lists."""

_SEPARATORS = re.compile(r"[\W_]+")


def suggest_name(name: object, known: Iterable[str]) -> str:
    """Return a question that names what was probably meant, or "" where nothing is near.

    Separators and capitals do not count, so `val_loss` finds `val/loss`; the last part of a path
    finds the whole path; `val/acc` finds what begins so, and `lr` two words that do; else names are
    compared by how many characters they share.

    Args:
        name: that was looked up and is not known.
        known: the names that exist.

    Returns:
        A sentence to append to a message, with a leading space, or "".

    >>> suggest_name("val_loss", ["train/loss", "val/loss", "val/accuracy"])
    " Did you mean 'val/loss'?"
    >>> suggest_name("loss", ["train/loss", "val/loss", "val/accuracy"])
    " Did you mean 'train/loss' or 'val/loss'?"
    >>> suggest_name("val/acc", ["val/loss", "val/accuracy"]), suggest_name("lr", ["rate",
    ...     "learning_rate"])
    (" Did you mean 'val/accuracy'?", " Did you mean 'learning_rate'?")
    >>> suggest_name("xyz", ["val/loss"])
    ''
    """
    found = [f"'{escaping.escape_text(near)}'" for near in near_names(name, known)]
    return f" Did you mean {' or '.join(found)}?" if found else ""


def near_names(name: object, known: Iterable[str]) -> list[str]:
    """Return at most three of the known names that resemble one, the nearest first.

    >>> near_names("stop_erly", ["stop_early", "stop_on_nan", "beat"])
    ['stop_early']
    """
    wanted, names = str(name), list(dict.fromkeys(map(str, known)))
    same = [one for one in names if _plain(one) == _plain(wanted)]
    ends = [one for one in names if _ends_in(one, wanted)]
    short = [one for one in names if _shortened(one, wanted)]
    return (same or ends or short or _close(wanted, names))[:3]


def suggest_and_list(name: object, known: Iterable[str], shown: Iterable[str] | None = None) -> str:
    """Return how a message goes on that says that a name is not known: the nearest, and all.

    Args:
        name: that was looked up and is not known.
        known: the names that exist.
        shown: how they are listed, where not as they are.

    >>> "no hook 'stop_erly'" + suggest_and_list("stop_erly", ["stop_early", "beat"])
    "no hook 'stop_erly'. Did you mean 'stop_early'? (there is: stop_early, beat)"
    >>> suggest_and_list("x", [])
    ' (there is: nothing)'
    """
    known = list(known)
    listed = [escaping.escape_text(one) for one in (known if shown is None else shown)]
    more = f" and {len(listed) - MANY} more" if len(listed) > MANY else ""
    question = suggest_name(name, known)
    listing = f" (there is: {', '.join(listed[:MANY]) or 'nothing'}{more})"
    return f".{question}{listing}" if question else listing


def _plain(name: str) -> str:
    return _SEPARATORS.sub("", name).casefold()


def _ends_in(path: str, wanted: str) -> bool:
    """Say whether the last part of a path of several is what is wanted."""
    head, _, tail = path.rpartition("/")
    return bool(head and _plain(wanted)) and _plain(tail) == _plain(wanted)


def _shortened(path: str, wanted: str) -> bool:
    """Say whether each part of a path begins as that of what is wanted, or its words do."""
    parts = list(zip(path.split("/"), wanted.split("/"), strict=False))
    return path.count("/") == wanted.count("/") and all(
        len(_plain(said)) > 1
        and (
            _plain(part).startswith(_plain(said))
            or "".join(word[:1] for word in _SEPARATORS.split(part)) == _plain(said)
        )
        for part, said in parts
    )


def _close(name: str, known: Iterable[str]) -> list[str]:
    """Return close matches, but none far behind the best: a typo has one remedy."""
    ratios = {one: _likeness(name, one) for one in known}
    best = max(ratios.values(), default=0.0)
    near = [one for one, ratio in ratios.items() if ratio >= max(0.6, best - 0.1)]
    return sorted(near, key=lambda one: -ratios[one])


def _likeness(a: str, b: str) -> float:
    """Compare two names, between 0 and 1; of two paths each part, for `val` is no `train`."""
    parts = list(zip(a.split("/"), b.split("/"), strict=False))
    pairs = parts if a.count("/") == b.count("/") else [(a, b)]
    return min(difflib.SequenceMatcher(None, _plain(x), _plain(y)).ratio() for x, y in pairs)
