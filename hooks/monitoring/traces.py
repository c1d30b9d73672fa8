"""Write the spans of a run to a file that Perfetto opens, in Chrome's trace event format."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from trainer.host.atomic_files import atomic_replace
from trainer.host.time_spans import Span
from trainer.runs.text import clean


def write_trace(file: Path, spans: Iterable[Span], *, began: int, dropped: int = 0) -> None:
    """Write spans as complete events, a track per thread. The file is replaced atomically.

    Args:
        file: to write; its folder must exist.
        spans: that ended after `began`, the trace's time 0 in nanoseconds of `perf_counter_ns`.
        dropped: number of earlier spans that are missing, which the file states.
    """
    process = os.getpid()
    with atomic_replace(file) as beside, beside.open("w", encoding="ascii") as written:
        head = {"displayTimeUnit": "ms", "otherData": {"spans left out": dropped}}
        written.write(json.dumps(head)[:-1] + ', "traceEvents": [')
        for number, event in enumerate(_events(spans, began)):
            written.write((",\n" if number else "\n") + json.dumps({"pid": process, **event}))
        written.write("\n]}\n")


def _events(spans: Iterable[Span], began: int) -> Iterator[dict[str, Any]]:
    yield {"ph": "M", "name": "process_name", "args": {"name": "entracte"}}
    for number, (name, track) in enumerate(_tracks(spans), 1):
        yield {"ph": "M", "name": "thread_name", "tid": number, "args": {"name": clean(name)}}
        order = {"sort_index": number}
        yield {"ph": "M", "name": "thread_sort_index", "tid": number, "args": order}
        for span in track:
            kind, name = span.path[-1]
            event = {
                "ph": "X",
                "name": clean(f"{kind} {name}".strip()),
                "cat": clean(kind),
                "tid": number,
                "ts": (span.began - began) / 1e3,
                "dur": (span.ended - span.began) / 1e3,
            }
            yield event if span.number is None else {**event, "args": {"number": span.number}}


def _tracks(spans: Iterable[Span]) -> list[tuple[str, list[Span]]]:
    """Return (name, spans in order) of each track.

    Threads of one name that do not overlap, such as those that save, share a track.
    """
    threads: dict[tuple[str, int], list[Span]] = {}
    for span in spans:
        threads.setdefault((span.thread_name, span.thread), []).append(span)
    for track in threads.values():
        track.sort(key=lambda span: (span.began, -span.ended, len(span.path)))
    tracks: list[tuple[str, list[Span]]] = []
    track_ends: list[int] = []  # when the last thread of each track ended
    for (name, _), track in sorted(threads.items(), key=lambda item: item[1][0].began):
        end = max(span.ended for span in track)
        for number, (other, earlier) in enumerate(tracks):
            if other == name and track_ends[number] <= track[0].began:
                earlier += track
                track_ends[number] = end
                break
        else:
            tracks.append((name, track))
            track_ends.append(end)
    return tracks
