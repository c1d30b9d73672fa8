"""What a run is doing right now, in a few words."""

from __future__ import annotations

from collections.abc import Sequence

from hooks.writers.console_layout import escape_control
from trainer.host.amounts import format_duration
from trainer.host.time_spans import OpenSpan, StepProgress

LONG = 1.0
"""Seconds after which an activity is shown."""

COMPUTING = ("dispatch", "wait", "data")
"""Kinds of spans in which a phase computes."""

VERBS = {"compile": "compiling", "flush": "flushing"}


def describe_activity(open_spans: Sequence[OpenSpan]) -> str:
    """Describe what a run is doing, if that takes long.

    Args:
        open_spans: of the run's thread, the outermost first.

    >>> describe_activity([OpenSpan("compile", "train", 12.3)])
    'compiling train, 12 s'
    >>> epoch = OpenSpan("epoch", "", 95.0, steps=(StepProgress("train", 1200, 5000),))
    >>> describe_activity([epoch, OpenSpan("wait", "train", 5.0)])
    'train, 1,200 of 5,000 steps, 95 s of this epoch'
    >>> describe_activity([OpenSpan("event", "epoch", 9.0), OpenSpan("hook", "evaluate", 9.0)])
    'hook evaluate, 9 s'
    >>> describe_activity([OpenSpan("epoch", "", 0.1)])
    ''
    """
    inner = [span for span in open_spans if span.kind not in ("epoch", "event")]
    if not inner or open_spans[0].seconds < LONG:
        return ""
    if inner[-1].kind == "compile":  # also within a hook
        inner = inner[-1:]
    kind, name, seconds = inner[0][:3]
    epoch = open_spans[0]
    if kind in COMPUTING and epoch.kind == "epoch":
        steps = [format_steps(progress) for progress in epoch.steps if progress.phase == name]
        spent = f"{format_duration(epoch.seconds)} of this epoch"
        return ", ".join([escape_control(name) or kind, *steps, spent])
    if seconds < LONG:
        return ""
    steps = [
        escape_control(f"{progress.phase} ") + format_steps(progress)
        for span in inner
        for progress in span.steps[-1:]
    ]
    activity = escape_control(f"{VERBS.get(kind, kind)} {name}".strip())
    return ", ".join([activity, *steps, format_duration(seconds)])


def format_steps(progress: StepProgress) -> str:
    """Format how many steps of a phase are done.

    >>> format_steps(StepProgress("train", 16, None))
    '16 steps'
    """
    of = "" if progress.total is None else f"of {progress.total:,} "
    return f"{progress.done:,} {of}steps"
