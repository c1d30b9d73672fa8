"""Time spans of a run: named, nested by thread, reported to listeners."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

import jax

Item = TypeVar("Item")

SpanPath = tuple[tuple[str, str], ...]
"""(kind, name) of a span and of those around it on its thread, the outermost first."""


class Span(NamedTuple):
    """A span that has ended."""

    path: SpanPath
    number: int | None
    """Which of many it is, such as the epoch's number."""
    began: int
    """Nanoseconds of `time.perf_counter_ns`."""
    ended: int
    thread: int
    """From `threading.get_ident`; the number of a thread that ended may be reused."""
    thread_name: str


Listener = Callable[[Span], None]
"""Called when a span ends, on its thread."""


def span(kind: str, name: str = "", number: int | None = None) -> _OpenTimer | _NoSpan:
    """Time a `with` block, also if it fails; it costs 0.1 us without a listener.

    Args:
        kind: what is done, a verb or a hook author's word: `dispatch`, `wait`, `writer`.
        name: the phase, the hook, the writer. Use few kinds and names, since sums are kept for
            each: what counts up is a number.
        number: which of many it is, shown in a trace alone.

    >>> heard = []
    >>> stop = add_listener(heard.append)
    >>> with span("epoch", number=1), span("wait", "train"):
    ...     pass
    >>> stop()
    >>> [(one.path, one.number) for one in heard]
    [((('epoch', ''), ('wait', 'train')), None), ((('epoch', ''),), 1)]
    """
    return _OpenTimer(kind, name, number) if _listeners else _NO_SPAN


def time_items(items: Iterable[Item], kind: str, name: str = "") -> Iterator[Item]:
    """Yield items, and time the wait for each.

    >>> list(time_items([1, 2], "data", "train"))
    [1, 2]
    """
    iterator = iter(items)
    while True:
        with span(kind, name):
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item


def add_listener(hear: Listener) -> Callable[[], None]:
    """Call a function with every span, of every thread, that begins from now on.

    Args:
        hear: safe to call on several threads; its exceptions are raised where the span was.

    Returns:
        A function that removes the listener; it may be called again. Threads that are about to call
        `hear` still do.
    """
    global _listeners
    began = time.perf_counter_ns()

    def hear_from_now(span: Span) -> None:
        if span.began >= began:
            hear(span)

    def stop() -> None:
        global _listeners
        with _changing:
            _listeners = tuple(one for one in _listeners if one is not hear_from_now)

    with _changing:
        _listeners = (*_listeners, hear_from_now)
    return stop


class OpenSpan(NamedTuple):
    """A span that has not ended."""

    kind: str
    name: str
    seconds: float
    """How long it has lasted."""
    number: int | None = None
    steps: tuple[StepProgress, ...] = ()
    """Of the phases that began within it, in order; of a repeated phase the last run."""


class StepProgress(NamedTuple):
    """The progress of a phase in its epoch."""

    phase: str
    done: int
    """Steps that the device has computed."""
    total: int | None
    """Steps of its epoch; None if not known before it ends."""


class StepCounter:
    """Counts the steps of a phase's epoch (None: not known): done once their mark is ready."""

    def __init__(self, phase: str, total: int | None) -> None:
        self.phase, self.total = phase, total
        self._done = 0
        self._waiting: deque[tuple[int, jax.Array]] = deque()
        self._counting = threading.Lock()

    def add(self, steps: int, mark: jax.Array) -> None:
        """Add dispatched steps, and keep their mark, an array that is ready when they are done."""
        self._waiting.append((steps, mark))
        if len(self._waiting) > 64:  # if nobody asks; a device queues at most 32 dispatches
            self.steps()

    def steps(self) -> StepProgress:
        """Return how many are done; any thread may ask."""
        with self._counting:
            while self._waiting and self._waiting[0][1].is_ready():  # type: ignore[attr-defined]
                self._done += self._waiting.popleft()[0]
            return StepProgress(self.phase, self._done, self.total)


def start_step_counter(phase: str, total: int | None) -> StepCounter | None:
    """Start to count the steps of a phase in the current span; return None without a listener.

    >>> class Ready:
    ...     def is_ready(self):
    ...         return True
    >>> stop = add_listener(lambda span: None)
    >>> with span("epoch"):
    ...     start_step_counter("train", 20).add(5, Ready())
    ...     list_open_spans(threading.get_ident())[0].steps
    (StepProgress(phase='train', done=5, total=20),)
    >>> stop()
    """
    around = _innermost.get(threading.get_ident())
    if around is None:
        return None
    counter = StepCounter(phase, total)
    others = (one for one in around.counters if one.phase != phase)  # a repeated run starts fresh
    around.counters = (*others, counter)
    return counter


def swap_step_counters(counters: tuple[StepCounter, ...]) -> tuple[StepCounter, ...]:
    """Give the current span these counters, and return those that it had; none without a span."""
    around = _innermost.get(threading.get_ident())
    if around is None:
        return ()
    before, around.counters = around.counters, counters
    return before


def list_open_spans(thread: int) -> list[OpenSpan]:
    """Return the open spans of a thread (`threading.get_ident`), the outermost first.

    Any thread may ask. Spans that began without a listener are not known.

    >>> stop = add_listener(lambda span: None)
    >>> with span("epoch"), span("wait", "train"):
    ...     [(one.kind, one.name) for one in list_open_spans(threading.get_ident())]
    [('epoch', ''), ('wait', 'train')]
    >>> stop()
    """
    found, now = [], time.perf_counter_ns()
    one = _innermost.get(thread)
    while one is not None:
        steps = tuple(counter.steps() for counter in one.counters)
        found.append(OpenSpan(*one.path[-1], (now - one.began) / 1e9, one.number, steps))
        one = one.outer
    return found[::-1]


class _OpenTimer:
    """An open span of one thread."""

    __slots__ = ("began", "counters", "number", "outer", "path")

    def __init__(self, kind: str, name: str, number: int | None) -> None:
        self.path: SpanPath = ((kind, name),)
        self.number = number
        self.counters: tuple[StepCounter, ...] = ()

    def __enter__(self) -> None:
        thread = threading.get_ident()
        self.outer = _innermost.get(thread)
        if self.outer is not None:
            self.path = self.outer.path + self.path
        self.began = time.perf_counter_ns()
        _innermost[thread] = self

    def __exit__(self, *exception: object) -> None:
        ended = time.perf_counter_ns()
        number, thread = threading.get_ident(), threading.current_thread()
        if self.outer is None:
            _innermost.pop(number, None)
        else:
            _innermost[number] = self.outer
        span = Span(self.path, self.number, self.began, ended, number, thread.name)
        for hear in _listeners:
            hear(span)


class _NoSpan:
    """Times nothing: all spans without a listener."""

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: object, trace: object) -> None:  # `*` takes longer
        pass


_NO_SPAN = _NoSpan()
_innermost: dict[int, _OpenTimer] = {}
"""By thread, the innermost open span."""
_listeners: tuple[Listener, ...] = ()
"""Replaced, never mutated, since other threads read it."""
_changing = threading.Lock()
