"""Several processes at one event: they prepare observers, and agree before anything is saved."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, MutableMapping, Sequence

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

    A failed observer is kept until the next exchange, which ends all processes with its reason:
    raised at once, it would leave the others waiting.
    """

    def __init__(self) -> None:
        self.reasons = NO_STOP
        """Why the run may end, agreed by all at the last event."""
        self._is_main = is_main_process()
        self._failure: Exception | None = None

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

        Where one is, records are durable afterwards.

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
        found = exchange_numbers(where, [*own, *due], self._pop_failure())
        self.reasons = combine_reasons(found[:, :3])
        chosen = [hook for hook, is_due in zip(saves, found[0, 3:], strict=True) if is_due]
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
