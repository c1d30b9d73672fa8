"""Suggestions for unknown names: which of the known ones was probably meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from trainer.host.escaping import escape_text

MANY = 20
"""Number of names that a message lists at most."""

_SEPARATORS = re.compile(r"[\W_]+")


def suggest_name(name: object, known: Iterable[str]) -> str:
    """Return a question that suggests similar names, or "" if there is none.

    Separators and capitals do not count, so `val_loss` finds `val/loss`. The last part of a path
    finds the whole path, `val/acc` finds names that begin so, and `lr` finds two words with these
    initials. Otherwise names are compared by the characters that they share.

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
    found = [f"'{escape_text(near)}'" for near in find_similar_names(name, known)]
    return f" Did you mean {' or '.join(found)}?" if found else ""


def find_similar_names(name: object, known: Iterable[str]) -> list[str]:
    """Return up to three known names that are similar, the most similar first.

    >>> find_similar_names("stop_erly", ["stop_early", "stop_on_nan", "heartbeat"])
    ['stop_early']
    """
    wanted, names = str(name), list(dict.fromkeys(map(str, known)))
    same = [one for one in names if _plain(one) == _plain(wanted)]
    ends = [one for one in names if _ends_in(one, wanted)]
    short = [one for one in names if _is_abbreviation(wanted, one)]
    return (same or ends or short or _find_close_matches(wanted, names))[:3]


def suggest_and_list(name: object, known: Iterable[str], shown: Iterable[str] | None = None) -> str:
    """Return the end of a message about an unknown name: similar names, and all known ones.

    If `shown` is given, it is listed instead of the known names.

    >>> "no hook 'stop_erly'" + suggest_and_list("stop_erly", ["stop_early", "heartbeat"])
    "no hook 'stop_erly'. Did you mean 'stop_early'? (there is: stop_early, heartbeat)"
    >>> suggest_and_list("x", [])
    ' (there is: nothing)'
    """
    known = list(known)
    listed = [escape_text(one) for one in (known if shown is None else shown)]
    more = f" and {len(listed) - MANY} more" if len(listed) > MANY else ""
    question = suggest_name(name, known)
    listing = f" (there is: {', '.join(listed[:MANY]) or 'nothing'}{more})"
    return f".{question}{listing}" if question else listing


def _plain(name: str) -> str:
    return _SEPARATORS.sub("", name).casefold()


def _ends_in(path: str, wanted: str) -> bool:
    """Return whether the last of several parts of a path is the wanted name."""
    head, _, tail = path.rpartition("/")
    return bool(head and _plain(wanted)) and _plain(tail) == _plain(wanted)


def _is_abbreviation(wanted: str, path: str) -> bool:
    """Return whether each part wanted is a prefix, or the initials, of that part of a path."""
    parts = list(zip(path.split("/"), wanted.split("/"), strict=False))
    return path.count("/") == wanted.count("/") and all(
        len(_plain(said)) > 1
        and (
            _plain(part).startswith(_plain(said))
            or "".join(word[:1] for word in _SEPARATORS.split(part)) == _plain(said)
        )
        for part, said in parts
    )


def _find_close_matches(name: str, known: Iterable[str]) -> list[str]:
    """Return close matches, but none that is much worse than the best one."""
    ratios = {one: _similarity(name, one) for one in known}
    least = max(0.6, max(ratios.values(), default=0.0) - 0.1)
    return sorted((one for one in ratios if ratios[one] >= least), key=lambda one: -ratios[one])


def _similarity(a: str, b: str) -> float:
    """Return the similarity of two names, in [0, 1]; for paths, of their least similar parts."""
    parts = list(zip(a.split("/"), b.split("/"), strict=False))
    pairs = parts if a.count("/") == b.count("/") else [(a, b)]
    return min(difflib.SequenceMatcher(None, _plain(x), _plain(y)).ratio() for x, y in pairs)
