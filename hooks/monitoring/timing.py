"""Timing: where a run's time goes, as scores of each epoch, a table and a trace."""

from __future__ import annotations

import collections
import os
import threading
import time
from collections.abc import Mapping

from hooks.combining import Chain, chain
from hooks.monitoring.time_tables import Sums, print_times
from hooks.monitoring.traces import write_trace
from trainer import Hook, TrainState
from trainer.checks.paths import to_absolute_path
from trainer.hook import SKIP
from trainer.host.folders import make_folder
from trainer.host.time_spans import Span, add_listener

KEPT = 50_000
"""Spans of a trace, at most: 15 to 20 MB of memory, 6 MB in the file."""

NOT_SCORED = ("epoch", "event", "hook")
"""Kinds of spans that contain the others, and hooks, which `fit` itself measures."""


def record_times(path: str | os.PathLike[str] | None = None) -> Chain:
    """Measure each phase, hook, writer, save, transfer and compilation of a run.

    At each `epoch` it scores the seconds since the previous one, by name, such as
    `time/wait/train`, `time/compile/train`, `time/writer/TensorBoard` and `time/save/write`, of all
    threads; `fit` itself adds `time/hook/<name>`. List it before `log_metrics`, so that the scores
    are recorded: what comes after it at an event counts for the next epoch.

    When the run is over, however it ended, it prints a table of all times, as a tree, and writes a
    trace that https://ui.perfetto.dev and `chrome://tracing` open, of the newest 50,000 spans, in
    20 MB of memory. Hooks listed before it are not measured at `start` and in closing. If nothing
    was trained, it does neither.

    JAX computes asynchronously: `dispatch train` is the time to dispatch the phase (on CPU it
    already computes much), and `wait train` the time until its metrics arrive. With `data train`,
    the wait for a source, and the hooks at phases they make up `time/epoch_seconds`.

    Args:
        path: of the trace, a JSON file, which is replaced; its folder is created. None writes none.

    Raises:
        OSError: the folder cannot be written to, or the path is one itself.

    >>> print(record_times())
    event  stage    hook                reads  writes
    start  observe  record_times/start
    epoch  observe  record_times               ...
    """
    file = None if path is None else to_absolute_path(path, "record_times")
    if file is not None:
        make_folder(file.parent, "record_times")
        if file.is_dir():
            raise IsADirectoryError(
                f"record_times needs the path of a file; {str(file)!r} is a folder"
            )
    watch: Stopwatch | None = None

    def begin(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        nonlocal watch
        if watch is not None:
            watch.stop()
        watch = Stopwatch()
        return state

    def score(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        times = {} if watch is None else watch.take()
        # Scores that other hooks wrote stay.
        return state.replace(scores={**times, **state.scores}) if times else state

    def close(error: BaseException | None) -> None:
        nonlocal watch
        ended, watch = watch, None
        if ended is None:
            return
        ended.stop()
        if ended.trained:
            try:
                if file is not None:
                    write_trace(file, ended.newest, began=ended.began, dropped=ended.dropped)
            finally:
                print_times(ended.sums, ended.seconds)

    start = Hook(
        begin, "record_times/start", event="start", stage="observe", dry_run=SKIP, close=close
    )
    # The names of scores are only known once something is measured.
    observe = Hook(score, "record_times", stage="observe", writes=lambda state: (), dry_run=SKIP)
    return chain(start, observe)


class Stopwatch:
    """Sums up the spans that end while it runs, and keeps the newest. It starts at once."""

    def __init__(self) -> None:
        self.sums: Sums = {}
        self.newest: collections.deque[Span] = collections.deque(maxlen=KEPT)
        self.dropped = 0
        """Spans that newer ones replaced."""
        self.trained = False
        """Whether an epoch began."""
        self.seconds = 0.0
        """How long it ran, once it is stopped."""
        self._since: dict[tuple[str, str], int] = {}
        self._lock = threading.Lock()
        self._thread = threading.get_ident()
        self.began = time.perf_counter_ns()
        self._unlisten = add_listener(self._add)

    def take(self) -> dict[str, float]:
        """Return the seconds since the previous call by `time/<kind>/<name>`, for all names so far.

        >>> from trainer.host.time_spans import span
        >>> watch = Stopwatch()
        >>> with span("wait", "train"): pass
        >>> watch.stop()
        >>> watch.take().keys(), watch.take()
        (dict_keys(['time/wait/train']), {'time/wait/train': 0.0})
        """
        with self._lock:
            since, self._since = self._since, dict.fromkeys(self._since, 0)
        return {
            f"time/{kind}/{name}" if name else f"time/{kind}": passed / 1e9
            for (kind, name), passed in since.items()
        }

    def stop(self) -> None:
        """Stop listening."""
        self._unlisten()
        self.seconds = (time.perf_counter_ns() - self.began) / 1e9

    def _add(self, span: Span) -> None:
        path, own = span.path, span.path[-1]
        if span.thread != self._thread:
            path = (("thread", span.thread_name), *path)
        passed = span.ended - span.began
        with self._lock:
            count, total = self.sums.get(path, (0, 0))
            self.sums[path] = count + 1, total + passed
            if own[0] not in NOT_SCORED:
                self._since[own] = self._since.get(own, 0) + passed
            self.trained = self.trained or own[0] == "epoch"
            self.dropped += len(self.newest) == KEPT
            self.newest.append(span)
