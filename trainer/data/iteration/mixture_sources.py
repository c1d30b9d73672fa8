"""Sources of a mixture that differ from those of the position that a run keeps."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from trainer.data.source import POSITION
from trainer.host.escaping import escape_text

_ENTRY = re.compile(rf"(carry/{POSITION}.+?)/sources/(.+)/(?:place|credit|content)")
"""The path of an entry of a mixture's position."""


def find_source_changes(saved: Iterable[str], wanted: Iterable[str]) -> dict[str, str]:
    """Find positions of mixtures whose sources changed, by the paths of leaves.

    Returns:
        By the path at which the entries of a position begin, what changed, with the remedy.

    >>> paths = [f"carry/position/train/sources/{name}/place" for name in "ab"]
    >>> found = find_source_changes(paths, paths[:1])
    >>> print(found["carry/position/train/sources/"])
    carry/position/train: saved with the sources a, b; got a: keep the sources ...
    """
    before, after = _group_sources(saved), _group_sources(wanted)
    return {
        f"{path}/sources/": f"{path}: {describe_source_changes(before[path], after[path])}"
        for path in before.keys() & after.keys()
        if before[path].keys() != after[path].keys()
    }


def describe_source_changes(saved: Iterable[str], given: Iterable[str]) -> str:
    """Return which sources a mixture was saved with and which it got, with the remedy."""
    listed = [", ".join(escape_text(name) for name in names) for names in (saved, given)]
    return (
        f"saved with the sources {listed[0]}; got {listed[1]}: keep the sources and their names, "
        "with weight 0 for those that are not to be drawn; a source can be added only in another "
        "directory, which begins with the parameters of this one (trainer.load_params)"
    )


def have_other_sources(saved: Any, given: Any) -> bool:
    """Return whether two positions are those of mixtures of different sources."""
    positions = isinstance(saved, Mapping) and isinstance(given, Mapping)
    mixed = positions and "sources" in saved and "sources" in given
    return mixed and saved["sources"].keys() != given["sources"].keys()


def _group_sources(paths: Iterable[str]) -> dict[str, dict[str, None]]:
    """Return the names of sources by the paths of their positions, in order."""
    found: dict[str, dict[str, None]] = {}
    for path in paths:
        if entry := _ENTRY.fullmatch(path):
            found.setdefault(entry[1], {})[entry[2]] = None
    return found
