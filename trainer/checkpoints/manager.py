"""The checkpoints of one run: saved in the background, the newest intact one restored."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from trainer.checkpoints import parts, publishing, run_id, select
from trainer.checkpoints.arrays import host_snapshot
from trainer.checkpoints.arrays.copied_arrays import CopiedArrays
from trainer.checkpoints.arrays.damage import DamagedCheckpoint
from trainer.checkpoints.arrays.leaves import flatten_state
from trainer.checkpoints.arrays.sharing import EarlierPieces
from trainer.checkpoints.reading_together import read_together
from trainer.checkpoints.restore_one import (
    SavedCheckpoint,
    list_restored_pieces,
    restore_checkpoint,
)
from trainer.checkpoints.retention import Catalog, Retention, prune
from trainer.checkpoints.save_worker import SLOW_DISK_REMEDY, SaveWorker
from trainer.checkpoints.saved_config import normalize_config
from trainer.checkpoints.staging import Staging
from trainer.checkpoints.storage.bucket_path import BucketPath
from trainer.checkpoints.storage.run_paths import RunPath
from trainer.checks.modes import resolve_mode
from trainer.host.processes import fail_together, is_main_process
from trainer.host.time_spans import span
from trainer.placement.meshes import describe_mesh
from trainer.state import TrainState


class Checkpoints:
    """The checkpoints of one run, in `<directory>/checkpoints/<epoch>`.

    A checkpoint appears completely or not at all, whenever the process is killed, and is restored
    only if every checksum agrees. One is written at a time, in the background; readers wait for it.
    A failed save is raised once: by the next `save`, `check_for_errors`, `wait` or `close`. Close
    it, as `with` and `fit` do: a process that just ends may fail to finish its save. On several
    processes each makes the same calls, and the directory must be shared.

    >>> import jax, tempfile, jax.numpy as jnp
    >>> state = TrainState.create(params={"w": jnp.ones(2)}, rng=jax.random.key(0))
    >>> with tempfile.TemporaryDirectory() as run, Checkpoints(run) as checkpoints:
    ...     checkpoints.save(state, scores={"val/loss": 0.5})
    ...     checkpoints.restore(state).scores
    {'val/loss': 0.5}
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | BucketPath,
        *,
        keep: int = 3,
        best: str | None = None,
        mode: str | None = None,
        keep_best: int = 1,
        every: int | None = None,
        time_limit: float | None = 600.0,
        read_only: bool = False,
    ) -> None:
        """Open the checkpoints of a run.

        Args:
            directory: of the run, created if absent, or the URL of a run in a bucket.
            keep: how many of the newest checkpoints to keep.
            best: the score that ranks checkpoints; None if none does.
            mode: `min` if a lower score is better, `max` if a higher one is; None infers it.
            keep_best: how many of the best checkpoints to keep in addition.
            every: keep every checkpoint whose number this divides in addition.
            time_limit: seconds after which writing a checkpoint has failed; None: no limit.
            read_only: only read; write and remove nothing.

        Raises:
            OSError: the directory cannot be written, or its folder `checkpoints` is a link.
            ValueError: a setting is out of range.
        """
        self.mode = resolve_mode("best", best, mode, optional=True)
        self._retention = Retention(keep, keep_best, every, self.mode)
        self.directory = select.get_checkpoint_folder(directory)
        self._read_only, self._is_main = read_only, is_main_process()
        self._catalog = Catalog(self.directory, best, read_only=read_only)
        self._written: set[int] = set()
        self._worker = SaveWorker("entracte-save", time_limit=time_limit, remedy=SLOW_DISK_REMEDY)
        self._buffer, self._memory = np.empty(0, np.uint8), publishing.RunMemory()
        self._earlier, self._copied = EarlierPieces(), CopiedArrays()
        self._blocked_seconds = self._seconds_before = 0.0
        if not read_only:
            with fail_together(f"opening {self.directory}"):
                if self._is_main:
                    publishing.ensure_writable(self.directory)
            self._staging = Staging(self.directory, time_limit)
        self._may_recover = self._is_main and not read_only
        self._recover()

    def _recover(self) -> None:
        """Repair what a killed run left half-way; leave alone what a live one is doing."""
        if self._may_recover and publishing.recover(self.directory):
            self._may_recover = False

    def save(
        self,
        state: TrainState,
        *,
        scores: Mapping[str, float] = {},
        config: Mapping[str, Any] | None = None,
        settings: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        """Save a state under the number of its epoch, replacing a checkpoint of that number.

        Returns once the state is copied to the host; waits first for a save in progress.

        Args:
            state: all of it is saved but `scores`.
            scores: the event's metrics, stored in the manifest; `best` ranks by one of them.
            config: the run's configuration, compared on restore.
            settings: the run's settings; see `trainer.loop.run_description`.

        Raises:
            TypeError: a leaf of the state, or of the configuration, cannot be saved.
            ValueError: two leaves share a path.
        """
        if self._read_only:
            raise RuntimeError(f"{self.directory} was opened with read_only=True: it cannot save")
        with span("save", "wait"), self._fail_together("the save before this one"):
            self._worker.wait_until_ready()
        self._seconds_before, began = self.seconds, time.perf_counter()
        epoch = int(state.epoch)
        with span("save", "copy", epoch):
            numbers = {name: float(score) for name, score in scores.items()}
            config = None if config is None else normalize_config(config)
            head: dict[str, Any] = {"scores": numbers, "config": config, "settings": settings}
            head["mesh"] = describe_mesh(state)
            sections = flatten_state(state)
            arguments = sections, self._buffer, self._copied
            leaves, self._buffer = host_snapshot.copy_to_host(*arguments)
            snapshot = parts.Snapshot(epoch, leaves, self._buffer, self._copied)
            writers = host_snapshot.count_writers(sections)
            stage = self._staging.choose_stage(epoch)
        self._blocked_seconds += time.perf_counter() - began
        if self._is_main or writers > 1:
            self._worker.start(
                functools.partial(self._write, stage, snapshot, head, writers),
                f"while saving epoch {epoch} to {self.directory}",
            )

    def _write(
        self, stage: RunPath, snapshot: parts.Snapshot, head: dict[str, Any], writers: int
    ) -> None:
        """Write what this process has of a checkpoint; the main one publishes it, and prunes."""
        epoch, abandoned, named = snapshot.epoch, self._worker.is_abandoned, self._memory.named
        earlier, self._earlier = self._earlier, EarlierPieces()  # if it fails, the next is whole
        with span("save", "write", epoch):
            if not self._is_main:
                self._earlier = parts.write_part(stage, snapshot, abandoned, earlier)
                return
            head["run"] = run_id.ensure_run_id(self.directory)
            publishing.remove_leftovers(stage, named, first=not self._written)
            wait = functools.partial(self._staging.wait_for_parts, stage, writers)
            self._earlier = publishing.write_checkpoint(
                stage, snapshot, head, abandoned, wait, self._memory, earlier
            )
            self._catalog.add(epoch, head["scores"])
            self._written.add(epoch)
            scores = self._catalog.read_scores()
            prune(self.directory, scores, self._retention, epoch, self._written, named)

    def restore(
        self,
        target: TrainState,
        *,
        epoch: int | None = None,
        config: Mapping[str, Any] | None = None,
        strict: bool = False,
        foreign: bool = False,
    ) -> SavedCheckpoint | None:
        """Restore the newest intact checkpoint in the target's structure; None if there is none.

        Damaged ones are skipped with a warning, and stay until a save replaces them. One that is
        intact but does not fit is an error. Hook states that only the checkpoint has are dropped,
        those that only the target has are left for their hooks to initialize: both are logged.

        Args:
            target: has the structure, types, devices and shardings to restore to.
            epoch: restore exactly this one.
            config: compared with the saved one, if both are given; `epochs` and `run` may differ.
            strict: raise if the newest one is damaged instead of skipping it.
            foreign: take a checkpoint that another run made, too.

        Raises:
            DamagedCheckpoint: no checkpoint is intact, or the requested one is not.
            FileNotFoundError: there is no checkpoint of this epoch.
            MemoryError: the checkpoint needs more memory than this machine has.
            ValueError: the checkpoint does not fit target or config; every path and key is listed.
        """

        def read(number: int) -> SavedCheckpoint:
            try:
                found = restore_checkpoint(self.directory, number, target, config, foreign=foreign)
            except DamagedCheckpoint:
                if epoch is None and not strict:
                    self._catalog.leave_out(number)
                raise
            self._catalog.add(number)
            return found

        def list_numbers() -> list[int]:
            numbers = publishing.list_epochs(self.directory)
            if epoch is not None:
                return select.check_listed(self.directory, epoch, numbers)
            return numbers[:-2:-1] if strict else numbers[::-1]

        self._worker.join()
        self._recover()

        choose = functools.partial(select.read_first_intact, self.directory, list_numbers)
        found = read_together(self.directory, choose, read, lambda found: found.identity)
        if found is not None and not self._read_only:
            self._earlier = list_restored_pieces(self.directory, found)
        return found

    def epochs(self) -> list[int]:
        """List the numbers (epochs) of the complete, undamaged checkpoints, ascending."""
        self._worker.join()
        return self._catalog.list_intact()

    def latest(self) -> int | None:
        """Return the number of the newest checkpoint."""
        return max(self.epochs(), default=None)

    def best(self) -> int | None:
        """Return the number of the checkpoint with the best score, the first of equal ones."""
        self._worker.join()
        return next(iter(select.rank_by_score(self._catalog.read_scores(), self.mode)), None)

    def manifest(self, epoch: int) -> dict[str, Any]:
        """Read a checkpoint's manifest; raise DamagedCheckpoint if it is not as it was written."""
        self._worker.join()
        return publishing.read_manifest(self.directory, epoch)

    @property
    def seconds(self) -> float:
        """Seconds that saving has taken so far, blocking and in the background."""
        return self._blocked_seconds + self._worker.seconds

    @property
    def last_seconds(self) -> float:
        """The part of `seconds` that the last save has taken, 0.0 before the first."""
        return self.seconds - self._seconds_before

    def check_for_errors(self) -> None:
        """Raise the failure of a save that ended in the background; on all processes if on one."""
        with self._fail_together("a save"):
            self._worker.check()

    def wait(self) -> None:
        """Wait until the save in progress is durable; raise its failure, on all processes."""
        with span("save", "wait"), self._fail_together("a save"):
            self._worker.wait()

    def close(self, *, failed: bool = False) -> None:
        """Wait for the save in progress and free the host copy; may be called again.

        If the run `failed`, other processes may have ended: wait for them a few seconds only.
        """
        if failed and not self._read_only:
            self._staging.hurry()
        try:
            with span("save", "wait"):
                self._worker.wait()  # alone: if one process fails, the others close elsewhere
        finally:
            self._buffer, self._earlier = np.empty(0, np.uint8), EarlierPieces()
            self._copied.clear()

    @contextlib.contextmanager
    def _fail_together(self, what: str) -> Iterator[None]:
        """Fail where another process does: what this one wrote may be in no checkpoint then."""
        try:
            with fail_together(what):
                yield
        except BaseException:
            self._earlier = EarlierPieces()
            raise

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        self.close(failed=kind is not None)
