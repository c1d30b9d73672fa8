"""Timing: named spans of a run, nested by thread, for whoever listens."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol, TypeVar

Item = TypeVar("Item")

Place = tuple[tuple[str, str], ...]
"""(kind, name) of a span and of those around it on its thread, the outermost first."""


class Span(NamedTuple):
    """A stretch of time that is over."""

    path: Place
    number: int | None
    """Which of many it is, such as the epoch."""
    began: int
    """Nanoseconds of `time.perf_counter_ns`."""
    ended: int
    thread: int
    """As `threading.get_ident` gives it; that of a thread which ended may be given again."""
    thread_name: str


Listener = Callable[[Span], None]
"""Called when a span ends, on the thread that it was on."""


def span(kind: str, name: str = "", number: int | None = None) -> _Timed | _Nothing:
    """Time what is done within `with`, also where it fails; it costs 0.1 us where nobody listens.

    Args:
        kind: what is done, a verb or what a hook's author would call it: `dispatch`, `wait`,
            `writer`.
        name: to what: the phase, the hook, the writer. Kinds and names are few, since sums are
            kept for each: what counts is a number.
        number: which of many it is, told in a trace alone.

    >>> heard = []
    >>> stop = add_listener(heard.append)
    >>> with span("epoch", number=1), span("wait", "train"):
    ...     pass
    >>> stop()
    >>> [(one.path, one.number) for one in heard]
    [((('epoch', ''), ('wait', 'train')), None), ((('epoch', ''),), 1)]
    """
    return _Timed(kind, name, number) if _listeners else _NOTHING


def spans(items: Iterable[Item], kind: str, name: str = "") -> Iterator[Item]:
    """Give items, the wait for each within a span.

    >>> list(spans([1, 2], "data", "train"))
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
    """Have a function called with every span, of every thread, that begins from now on.

    Args:
        hear: must be safe to call on several threads; what it raises is raised where the span was.

    Returns:
        What ends it; may be called again. Threads that are about to call `hear` still do.
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
    """A span that is not over."""

    kind: str
    name: str
    seconds: float
    """That it has taken."""
    number: int | None = None
    steps: tuple[StepProgress, ...] = ()
    """Of the phases that began within it, in order; of one that ran several times the last."""


class StepProgress(NamedTuple):
    """How far a phase is in its epoch."""

    phase: str
    done: int
    """Steps that the device has computed."""
    total: int | None
    """Steps of its epoch; None where that is not known before it ends."""


class Mark(Protocol):
    """An array that is ready when the steps before it are done."""

    def is_ready(self) -> bool:
        """Say so, without waiting."""


class StepCounter:
    """The steps of a phase, counted as they are dispatched, and done once their mark is ready.

    Args:
        phase: its name.
        total: steps of its epoch; None where that is not known.
    """

    def __init__(self, phase: str, total: int | None) -> None:
        self.phase, self.total = phase, total
        self._done = 0
        self._waiting: deque[tuple[int, Mark]] = deque()
        self._counting = threading.Lock()

    def add(self, steps: int, mark: Mark) -> None:
        """Count steps that were dispatched, and keep their mark until it is ready."""
        self._waiting.append((steps, mark))
        if len(self._waiting) > 64:  # where nobody asks; a device has 32 dispatches at most to do
            self.steps()

    def steps(self) -> StepProgress:
        """Count those that are done; any thread may ask."""
        with self._counting:
            while self._waiting and self._waiting[0][1].is_ready():
                self._done += self._waiting.popleft()[0]
            return StepProgress(self.phase, self._done, self.total)


def start_step_counter(phase: str, total: int | None) -> StepCounter | None:
    """Begin to count the steps of a phase within the span under way; None where nobody listens.

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
    advance = StepCounter(phase, total)
    others = (one for one in around._advances if one.phase != phase)  # run again, it begins anew
    around._advances = (*others, advance)
    return advance


def list_open_spans(thread: int) -> list[OpenSpan]:
    """Return what a thread is at, the outermost span first; any thread may ask.

    Spans that began while nobody listened are not known.

    Args:
        thread: as `threading.get_ident` gives it.

    >>> stop = add_listener(lambda span: None)
    >>> with span("epoch"), span("wait", "train"):
    ...     [(one.kind, one.name) for one in list_open_spans(threading.get_ident())]
    [('epoch', ''), ('wait', 'train')]
    >>> stop()
    """
    found, now = [], time.perf_counter_ns()
    one = _innermost.get(thread)
    while one is not None:
        steps = tuple(advance.steps() for advance in one._advances)
        found.append(OpenSpan(*one._own, (now - one._began) / 1e9, one._number, steps))
        one = one._outer
    return found[::-1]


class _Timed:
    """A span under way, on one thread."""

    __slots__ = ("_advances", "_around", "_began", "_number", "_outer", "_own")

    def __init__(self, kind: str, name: str, number: int | None) -> None:
        self._own, self._number = (kind, name), number
        self._advances: tuple[StepCounter, ...] = ()

    def __enter__(self) -> None:
        self._around = _here.path
        _here.path = (*self._around, self._own)
        thread = threading.get_ident()
        self._outer = _innermost.get(thread)
        self._began = time.perf_counter_ns()
        _innermost[thread] = self

    def __exit__(self, *exception: object) -> None:
        ended = time.perf_counter_ns()
        path, _here.path = _here.path, self._around
        thread = threading.current_thread()
        if self._outer is None:
            _innermost.pop(threading.get_ident(), None)
        else:
            _innermost[threading.get_ident()] = self._outer
        span = Span(path, self._number, self._began, ended, threading.get_ident(), thread.name)
        for hear in _listeners:
            hear(span)


class _Nothing:
    """Times nothing: all spans where nobody listens."""

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: object, trace: object) -> None:  # `*` takes longer
        pass


class _Here(threading.local):
    """Where each thread is."""

    path: Place = ()


_NOTHING = _Nothing()
_innermost: dict[int, _Timed] = {}
"""By thread, the span that began last of those under way."""
_here = _Here()
_listeners: tuple[Listener, ...] = ()
"""Replaced, never changed, since other threads read it."""
_changing = threading.Lock()
