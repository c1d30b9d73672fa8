"""Profiling: trace what the devices and the host do in a few epochs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

import jax

from hooks.combining import Chain, chain
from trainer import Hook, TrainState
from trainer.checks.paths import to_absolute_path
from trainer.hook import SKIP
from trainer.host.folders import make_folder
from trainer.state import read_epoch

_planned: dict[object, tuple[int, int, str]] = {}
"""First and last epoch, and directory, of the profiles of current runs: JAX has one profiler."""


def profile(directory: str | os.PathLike[str], *, epochs: Iterable[int] = (2, 3)) -> Chain:
    """Trace a few epochs with JAX's profiler, for TensorBoard's Profile page and for Perfetto.

    List it after other observers, so that they are not traced. The trace is in
    `plugins/profile/<time>/` in the directory, which may be that of a `TensorBoard` writer; the
    page needs `pip install xprof`. A run that fails or ends during the trace writes what it has. On
    several processes only the main process is traced. Epoch 1 includes compilations, and traced
    epochs are slower. With `fit(..., overlap=True)` an epoch begins before the hooks of the one
    before it, so the first is traced in part: choose one more.

    Args:
        directory: where to write; it is created.
        epochs: consecutive ones, counted from 1: `(2, 3)`, or `range(10, 13)` for 10 to 12. Choose
            a few short ones: a trace takes memory for every operation.

    Raises:
        ValueError: there are no epochs, they are not consecutive, or, at the start, they overlap or
            directly follow another profile of the run.
        RuntimeError: when they begin, a trace is active that no such hook started.
        OSError: the directory cannot be written to.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     print(profile(folder, epochs=range(10, 13)))
    event  stage    hook           reads  writes
    start  observe  profile/start
    epoch  observe  profile
    """
    numbers = sorted(epochs)
    if not numbers or numbers[0] < 1 or numbers != list(range(numbers[0], numbers[-1] + 1)):
        raise ValueError(
            "profile needs consecutive epochs, counted from 1, such as (2, 3) or range(10, 13); "
            f"got {numbers}: use a second profile for other epochs"
        )
    first, last = numbers[0], numbers[-1]
    directory = to_absolute_path(directory, "profile")
    make_folder(directory, "profile")
    me, tracing = object(), False

    def begin(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        for key, (other_first, other_last, folder) in _planned.items():
            if key is not me and other_first <= last + 1 and first <= other_last + 1:
                raise ValueError(
                    f"profile of epochs {first} to {last} meets that of {other_first} to "
                    f"{other_last} in {folder!r}; there must be an epoch between two profiles"
                )
        _planned[me] = first, last, str(directory)
        return trace(state, metrics)

    def trace(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        nonlocal tracing
        epoch, total = read_epoch(state), getattr(metrics, "epochs", None)
        if tracing and epoch >= last:
            close()
        elif not tracing and first <= epoch + 1 <= last and not state.stop and epoch != total:
            try:
                jax.profiler.start_trace(directory)
            except RuntimeError as error:
                error.add_note(f"profile of epochs {first} to {last}: end the other trace first")
                raise
            tracing = True
        return state

    def close() -> None:
        nonlocal tracing
        if tracing:
            tracing = False
            jax.profiler.stop_trace()

    def end(error: BaseException | None) -> None:
        _planned.pop(me, None)
        close()

    return chain(
        Hook(begin, "profile/start", event="start", stage="observe", dry_run=SKIP),
        Hook(trace, "profile", stage="observe", dry_run=SKIP, close=end),
    )
