"""A check that all processes see the same directory."""

from __future__ import annotations

import time

import jax

from trainer.checkpoints.storage.run_paths import RunPath
from trainer.host.processes import draw_shared_name, fail_together, is_main_process

WAIT_SECONDS = 10.0
"""Seconds until a network file system shows a new file everywhere, at most."""


def check_shared(directory: RunPath) -> None:
    """Check that every process sees what the main process writes; all must call it.

    Raises:
        FileNotFoundError: another process wrote a file that is not here.
        OSError: the main process cannot write.
        FailedElsewhereError: one of them was raised on another process.
    """
    if jax.process_count() == 1:
        return
    token = directory / f".shared-{draw_shared_name()}"
    try:
        with fail_together(f"writing to {directory}"):
            if is_main_process():
                token.touch()
        with fail_together(f"looking for a file of process 0 in {directory}"):
            _wait_for(token)
    finally:
        if is_main_process():
            token.unlink(missing_ok=True)


def _wait_for(token: RunPath) -> None:
    until = time.monotonic() + WAIT_SECONDS
    while not token.exists():
        if time.monotonic() > until:
            raise FileNotFoundError(
                f"process {jax.process_index()} does not see the file that process 0 wrote to "
                f"{token.parent}: the directory of a run on several processes must be one that all "
                "of them share, such as on a network file system"
            )
        time.sleep(0.05)
