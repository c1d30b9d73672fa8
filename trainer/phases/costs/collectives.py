"""Collectives of a compiled program: how often, and of how many bytes, by the text of its HLO."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping

KINDS = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute")
"""Operations by which devices exchange data, as XLA names them."""

COMPUTATION = re.compile(r"^(ENTRY )?%?([^\s(]+) \(.*\{$")
OPERATION = re.compile(r"= (.*?) ([a-z][a-z0-9-]*)\(")
"""Result and name of an operation."""

CALLED = re.compile(r"(?:calls|to_apply|body|branch_computations|true_computation|"
                    r"false_computation)=(\{[^}]*\}|%?[^\s,)]+)")  # fmt: skip
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
SHAPE = re.compile(r"\b(pred|[a-z]+(\d+)[a-z0-9]*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """The collectives of one kind in a step."""

    count: int
    bytes: int
    """Of their results, on each device: a gather's is the whole array, a sum's is the sum."""


def count_collectives(text: str) -> dict[str, Collective]:
    """Count the collectives of a program by kind; those in a loop as often as it runs.

    A loop whose length XLA does not know counts once. All branches of a condition count.

    Args:
        text: of a compiled program, `jax.stages.Compiled.as_text()`.

    >>> count_collectives('''ENTRY %main (x: f32[8]) -> f32[8] {
    ...   %x = f32[8]{0} parameter(0)
    ...   ROOT %sum = f32[8]{0} all-reduce(%x), replica_groups={}, to_apply=%add
    ... }''')
    {'all-reduce': Collective(count=1, bytes=32)}
    """
    computations, entry = _split(text.splitlines())
    totals: dict[str, Collective] = {}

    def add(name: str, times: int) -> None:
        for line in computations.get(name, ()):
            found = OPERATION.search(line)
            kind = found[2].removesuffix("-done") if found else ""  # of two parts, the second
            if found and kind in KINDS:
                before = totals.get(kind, Collective(0, 0))
                size = times * _count_bytes(found[1])
                totals[kind] = Collective(before.count + times, before.bytes + size)
                continue
            trips = TRIPS.search(line)
            for called in CALLED.findall(line):
                for inner in re.findall(r"[^\s,{}%]+", called):
                    add(inner, times * (int(trips[1]) if trips else 1))

    add(entry, 1)
    return dict(sorted(totals.items()))


def _split(lines: Iterable[str]) -> tuple[Mapping[str, list[str]], str]:
    """Return the lines of each computation, and the name of the first one to run."""
    computations: dict[str, list[str]] = {}
    current: list[str] = []
    entry = ""
    for line in lines:
        if found := COMPUTATION.match(line):
            current = computations.setdefault(found[2], [])
            entry = found[2] if found[1] else entry
        else:
            current.append(line)
    return computations, entry


def _count_bytes(result: str) -> int:
    """Count the bytes of a result, `f32[8,4]{1,0}` or a tuple of such."""
    total = 0
    for kind, bits, sizes in SHAPE.findall(result):
        elements = math.prod(int(size) for size in sizes.split(",") if size)
        total += elements * (8 if kind == "pred" else int(bits)) // 8
    return total
