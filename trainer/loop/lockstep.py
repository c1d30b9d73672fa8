"""Several processes at one event: they prepare observers, and agree before anything is saved."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, MutableMapping, Sequence

import numpy as np

from trainer.hook import Gate, Hook
from trainer.host.exception_notes import annotate_errors
from trainer.host.exchange import FailedElsewhereError
from trainer.host.processes import (
    NO_STOP,
    StopReasons,
    combine_reasons,
    exchange_numbers,
    from_main_process,
    is_main_process,
)
from trainer.loop.observer_views import ObserverView, gather_parts, list_split
from trainer.phases.metrics import Metrics
from trainer.state import TrainState

Answers = MutableMapping[Gate, bool]


class Lockstep:
    """What the processes of a run agree on, event by event.

    An epoch takes one exchange: why the run may end, which saves are due, the times of the main
    process, and whether hooks changed an array. A control hook that reads a time before takes
    another. A failed observer is kept until the next exchange, which ends all processes with its
    reason: raised at once, it would leave the others waiting.
    """

    def __init__(self) -> None:
        self.reasons = NO_STOP
        """Why the run may end, agreed by all at the last event."""
        self.changed = False
        """Whether hooks changed an array: here before `settle`, on any process after."""
        self._is_main = is_main_process()
        self._failure: Exception | None = None
        self._times: dict[str, float] = {}
        """Of this process, until those of the main process are known here."""
        self._shared: dict[str, float] = {}
        """Times of the main process."""

    def begin(self, event: str, metrics: Metrics) -> None:
        """Begin an event; at `epoch` the metrics have times, which differ between processes."""
        times = [name for name in metrics if name.startswith("time/")] if event == "epoch" else []
        self._times, self._shared = {name: metrics[name] for name in times}, {}

    def delay_times(self, metrics: Metrics) -> Metrics:
        """Return metrics for a hook that runs on all processes: reading a time shares them."""
        return metrics.with_late(self._times, self._read_times) if self._times else metrics

    def share_times(self, metrics: Metrics) -> Metrics:
        """Return metrics with the times of the main process, once they are shared."""
        return metrics.with_scores(self._shared) if self._shared else metrics

    def _read_times(self) -> dict[str, float]:
        if not self._shared:
            what = "times of an epoch, which a control hook reads (on all processes or on none)"
            sent = exchange_numbers(what, [*self._times.values()], self._pop_failure())
            self._shared = dict(zip(self._times, sent[0].tolist(), strict=True))
        return self._shared

    def prepare_view(
        self, hook: Hook, state: TrainState, metrics: Metrics, answers: Answers
    ) -> ObserverView | None:
        """Return what an observer sees, gathered as it asks; None if it does not run here.

        Raises:
            FailedElsewhereError: an observer failed on the main process.
        """
        gathered = None
        if hook.gather and list_split(state, hook.gather):
            due = self._is_main and self._failure is None
            if due:
                with self.holding_failure(hook.at), _annotate(hook):
                    view = ObserverView(state, metrics, hook.name)
                    due = hook.is_due(view.state, view.metrics, answers)
            what = f"due, observer {hook.name}"
            if not from_main_process({what: due}, self._pop_failure())[what]:
                return None
            gathered = gather_parts(state, hook.gather)
        if not self._is_main or self._failure is not None:
            return None
        return ObserverView(state, metrics, hook.name, gathered)

    def settle(
        self,
        where: str,
        own: StopReasons,
        saves: Sequence[Hook],
        state: TrainState,
        metrics: Metrics,
        answers: Answers,
        flush: Callable[[], None],
    ) -> list[Hook]:
        """Agree why the run may end, and return the saves that the main process finds due.

        Where one is, records are durable afterwards. Times are shared, too.

        Raises:
            FailedElsewhereError: an observer failed on the main process, or a process is elsewhere.
            RuntimeError: only some of the processes decided to stop.
        """
        due = [False] * len(saves)
        if self._is_main and self._failure is None:
            with self.holding_failure():
                for place, hook in enumerate(saves):
                    with _annotate(hook):
                        view = ObserverView(state, metrics, hook.name)
                        due[place] = hook.is_due(view.state, view.metrics, answers)
                if any(due):
                    flush()
        sent = [self.changed, *own, *due, *self._times.values()]
        found = exchange_numbers(where, sent, self._pop_failure())
        places = np.cumsum([1, len(own), len(due)])
        changed, reasons, dues, times = np.split(found, places, axis=1)
        self.changed = bool(changed.any())
        self.reasons = combine_reasons(reasons)
        self._shared, self._times = dict(zip(self._times, times[0].tolist(), strict=True)), {}
        chosen = [hook for hook, is_due in zip(saves, dues[0], strict=True) if is_due]
        if chosen and not self._is_main:  # here only hooks of the user have records
            flush()
        return chosen

    @contextlib.contextmanager
    def holding_failure(self, event: str = "epoch") -> Iterator[None]:
        """Keep what a block raises for the next exchange; at `error` there is none."""
        try:
            yield
        except FailedElsewhereError:
            raise
        except Exception as error:
            if event == "error":
                raise
            self._failure = error

    def _pop_failure(self) -> Exception | None:
        failure, self._failure = self._failure, None
        return failure


def _annotate(hook: Hook) -> contextlib.AbstractContextManager[None]:
    return annotate_errors(f"in a condition of hook {hook.name!r} at {hook.at!r}")
