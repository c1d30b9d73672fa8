"""Traces: a track per thread, shared by threads that do not overlap."""

from __future__ import annotations

import json

import pytest

from hooks.monitoring.traces import write_trace
from trainer.host.time_spans import Span


def one(name, began, ended, *, thread=1, thread_name="main", number=None):
    """A span of these microseconds."""
    return Span((("work", name),), number, began * 1000, ended * 1000, thread, thread_name)


def written(tmp_path, spans, **more):
    file = tmp_path / "trace.json"
    write_trace(file, spans, began=0, **more)
    return json.loads(file.read_text())["traceEvents"]


def test_a_span_is_a_complete_event_in_microseconds(tmp_path):
    events = written(tmp_path, [one("a", 5, 8, number=3)])
    (event,) = [event for event in events if event["ph"] == "X"]
    assert {k: v for k, v in event.items() if k != "pid"} == {
        "ph": "X",
        "name": "work a",
        "cat": "work",
        "tid": 1,
        "ts": 5.0,
        "dur": 3.0,
        "args": {"number": 3},
    }


@pytest.mark.parametrize(
    ("saves", "tracks"),
    [
        ([(2, 0, 4), (3, 5, 6), (2, 7, 9)], [["a", "c"], ["b"]]),  # thread 2 spans the others
        ([(2, 0, 4), (3, 4, 6), (4, 7, 9)], [["a", "b", "c"]]),
        ([(2, 0, 4), (3, 3, 6), (4, 7, 9)], [["a", "c"], ["b"]]),
    ],
)
def test_threads_of_one_name_share_a_track_unless_they_overlap(tmp_path, saves, tracks):
    spans = [
        one(name, began, ended, thread=thread, thread_name="saver")
        for name, (thread, began, ended) in zip("abc", saves, strict=True)
    ]
    events = written(tmp_path, spans)
    assert [e["args"]["name"] for e in events if e["name"] == "thread_name"] == ["saver"] * len(
        tracks
    )
    found = {}
    for event in events:
        if event["ph"] == "X":
            found.setdefault(event["tid"], []).append(event["name"].removeprefix("work "))
    assert list(found.values()) == tracks


def test_a_file_without_spans_is_complete_and_states_what_is_left_out(tmp_path):
    assert [event["ph"] for event in written(tmp_path, [], dropped=7)] == ["M"]
    trace = json.loads((tmp_path / "trace.json").read_text())
    assert trace["otherData"] == {"spans left out": 7}
    assert [file.name for file in tmp_path.iterdir()] == ["trace.json"]
