"""Profiling: a trace of what the devices and the host do in a few epochs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

import jax

from hooks.combining import Chain, chain
from hooks.metric_logging import read_step_epoch
from hooks.writers.writer import make_folder
from trainer import Hook, TrainState
from trainer.checks.paths import to_absolute_path

_planned: dict[object, tuple[int, int, str]] = {}
"""First and last epoch, and directory, of the profiles of runs under way: JAX has one profiler."""


def profile(directory: str | os.PathLike[str], *, epochs: Iterable[int] = (2, 3)) -> Chain:
    """Trace a few epochs with JAX's profiler, for TensorBoard's Profile page and for Perfetto.

    The trace begins after the epoch before and ends with the last; list it behind other observers,
    so that it is not of them. It is written to `plugins/profile/<time>/` in the directory, which
    may be that of a `TensorBoard` writer; the page needs `pip install xprof`. A run that fails or
    ends on the way leaves what there is, one that resumes beyond these epochs traces nothing. On
    several processes the lead is traced. Epoch 1 has compilations in it, and traced epochs are
    slower.

    Args:
        directory: where to write; it is made.
        epochs: consecutive ones, counted from 1: `(2, 3)`, or `range(10, 13)` for 10 to 12. A few
            short ones: a trace takes memory for every operation.

    Raises:
        ValueError: the epochs are none, or not consecutive, or, at the start, another profile of
            the run has one of them or goes on directly.
        RuntimeError: when they begin, a trace is being taken that no such hook began.
        OSError: the directory cannot be written to.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     print(profile(folder, epochs=range(10, 13)))
    event  stage    hook           reads  writes
    start  observe  profile/start
    epoch  observe  profile
    """
    wanted = sorted(epochs)
    if not wanted or wanted[0] < 1 or wanted != list(range(wanted[0], wanted[-1] + 1)):
        raise ValueError(
            "profile needs consecutive epochs, counted from 1, such as (2, 3) or range(10, 13); "
            f"got {wanted}: give others a profile of their own"
        )
    first, last = wanted[0], wanted[-1]
    directory = to_absolute_path(directory, "profile")
    make_folder(directory, "profile")
    me, tracing = object(), False

    def begin(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        for other in (place for key, place in _planned.items() if key is not me):
            if other[0] <= last + 1 and first <= other[1] + 1:
                raise ValueError(
                    f"profile of epochs {first} to {last} meets that of {other[0]} to {other[1]} "
                    f"in {other[2]!r}; there must be an epoch between two profiles"
                )
        _planned[me] = first, last, str(directory)
        return trace(state, metrics)

    def trace(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        nonlocal tracing
        epoch, total = read_step_epoch(state)[1], getattr(metrics, "epochs", None)
        if tracing and epoch >= last:
            close()
        elif not tracing and first <= epoch + 1 <= last and not state.stop and epoch != total:
            try:
                jax.profiler.start_trace(directory)
            except RuntimeError as error:
                error.add_note(f"profile of epochs {first} to {last}: end the other trace before")
                raise
            tracing = True
        return state

    def leave(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        return state

    def close() -> None:
        nonlocal tracing
        if tracing:
            tracing = False
            jax.profiler.stop_trace()

    def end() -> None:
        _planned.pop(me, None)
        close()

    return chain(
        Hook(begin, "profile/start", event="start", stage="observe", dry_run=leave),
        Hook(trace, "profile", stage="observe", dry_run=leave, close=end),
    )
