"""Where checkpoints are staged, and how the main process waits for the parts of the others.

No process waits for another but the main one, which publishes when all parts are there. A staging
folder's name has a nonce of the run, so that what a killed run, or a process that outlived it, left
behind is never mixed in.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import xxhash

from trainer.checkpoints import manifest as manifests
from trainer.checkpoints import manifest_schema
from trainer.checkpoints.parts import LONGEST_REASON, PartFile, get_failed_file, get_part_file
from trainer.checkpoints.publishing import choose_stage
from trainer.checkpoints.storage.run_paths import RunPath, list_names, map_requests, read_whole
from trainer.host.processes import draw_shared_name

_LONGEST_PAUSE = 0.1
"""Seconds between two looks for parts."""

_LONGEST_PAUSE_IN_BUCKET = 1.0
"""As `_LONGEST_PAUSE`: each look in a bucket is paid for, and lists a thousand objects."""

_PATIENCE = 10.0
"""Seconds that a run which failed waits for other processes to finish a save."""


class Staging:
    """The staging folders of one run; all processes must make it at once.

    Args:
        directory: of the checkpoints.
        time_limit: seconds that a save may take; None: no limit.
    """

    def __init__(self, directory: RunPath, time_limit: float | None) -> None:
        self._directory = directory
        self._nonce = draw_shared_name()
        self._saves = 0
        # Less than the whole save may take, so that the error can name who is late.
        self._limit = float("inf") if time_limit is None else 0.9 * time_limit
        self._ends = float("inf")

    def choose_stage(self, epoch: int) -> RunPath:
        """Return where the next save is staged: the same on all processes."""
        self._saves += 1
        return choose_stage(self._directory, f"{epoch}.{self._nonce}-{self._saves}")

    def hurry(self) -> None:
        """Wait for other processes for a few seconds at most: they may have ended."""
        self._ends = time.monotonic() + _PATIENCE

    def wait_for_parts(self, stage: RunPath, processes: int) -> list[PartFile]:
        """Wait until all other processes have written their parts of a checkpoint.

        Args:
            stage: of the checkpoint.
            processes: how many there are.

        Returns:
            The part file of process 1, 2, ...

        Raises:
            RuntimeError: a process could not write its part; the message has its reason.
            TimeoutError: a part is missing after the time limit.
        """
        found: dict[int, PartFile] = {}
        missing = [*range(1, processes)]
        began, pause = time.monotonic(), 0.001
        longest = _LONGEST_PAUSE if isinstance(stage, Path) else _LONGEST_PAUSE_IN_BUCKET
        while True:
            found |= _read_part_files(stage, missing)
            missing = [process for process in missing if process not in found]
            if not missing:
                return [found[process] for process in range(1, processes)]
            now = time.monotonic()
            if now > min(began + self._limit, self._ends):
                raise TimeoutError(
                    f"processes {missing} did not write their parts within {now - began:.0f} "
                    "seconds: see what they report. They ended or were stopped, their disk is full "
                    "or slow, or the directory is not one that all processes share"
                )
            time.sleep(pause)
            pause = min(2 * pause, longest)


def _read_part_files(stage: RunPath, missing: Sequence[int]) -> dict[int, PartFile]:
    """Return the part files that are there, of the processes that were missing."""
    names = list_names(stage)
    for process in missing:
        if (failed := get_failed_file(stage, process)).name in names:
            reason = read_whole(failed, most=4 * LONGEST_REASON).decode("utf-8", "replace")
            raise RuntimeError(f"process {process} could not write its part: {reason}")

    def read(process: int) -> PartFile:
        content = read_whole(get_part_file(stage, process), most=manifest_schema.MOST_BYTES)
        return PartFile(xxhash.xxh3_64_hexdigest(content), *manifests.read_head_of_part(content))

    written = [process for process in missing if get_part_file(stage, process).name in names]
    return dict(zip(written, map_requests(read, written, stage), strict=True))
