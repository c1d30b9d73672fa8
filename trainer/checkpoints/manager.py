"""The commits of one run: saved in the background, the newest intact one restored."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np

from trainer.checkpoints import directory_lock, host_snapshot, publishing, run_id
from trainer.checkpoints import manifest as manifests
from trainer.checkpoints.manifest import DamagedCheckpoint, Leaf
from trainer.checkpoints.restore_one import (
    SavedCheckpoint,
    read_on_all_processes,
    restore_checkpoint,
)
from trainer.checkpoints.save_worker import SLOW, Worker
from trainer.checkpoints.saved_config import normalize_config
from trainer.checks.arguments import require_integer
from trainer.checks.modes import resolve_mode
from trainer.checks.paths import to_absolute_path
from trainer.host.atomic_files import explain_disk_full
from trainer.host.processes import fail_together, is_main_process
from trainer.host.time_spans import span
from trainer.state import TrainState

log = logging.getLogger("entracte")


class Checkpoints:
    """The commits of one run, in `<directory>/checkpoints/<epoch>`.

    A commit appears at once or not at all, whenever the process is killed, and is restored only if
    every checksum agrees. One is written at a time, in the background; what reads waits for it.
    The failure of a save is raised once: by the next `save`, `check_for_errors`, `wait` or `close`.
    Close it, as `with` and `fit` do: from Python 3.12 on a process that just ends can start no
    threads, and so may fail, with a message, to finish the save under way; the commits before
    stand. On several processes each makes the same calls: the first one writes and all read, so the
    directory must be one that they share.

    >>> import jax, tempfile, jax.numpy as jnp
    >>> state = TrainState.create(params={"w": jnp.ones(2)}, rng=jax.random.key(0))
    >>> with tempfile.TemporaryDirectory() as run, Checkpoints(run) as checkpoints:
    ...     checkpoints.save(state, scores={"val/loss": 0.5})
    ...     checkpoints.restore(state).scores
    {'val/loss': 0.5}
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep: int = 3,
        best: str | None = None,
        mode: str | None = None,
        keep_best: int = 1,
        every: int | None = None,
        time_limit: float | None = 600.0,
        read_only: bool = False,
    ) -> None:
        """Open the commits of a run.

        Args:
            directory: of the run; made if absent.
            keep: how many of the newest commits to keep.
            best: the score by which commits are compared; None if none is.
            mode: "min" if a lower score is better, "max" if a higher one is; None goes by its name.
            keep_best: how many of the best commits to keep besides.
            every: keep every commit whose number this divides besides.
            time_limit: seconds that writing a commit may take; then it is a failed save. None for
                as long as it takes.
            read_only: only read; write and remove nothing.

        Raises:
            OSError: the directory cannot be written, or its folder `checkpoints` is a link.
            ValueError: a setting is out of range.
        """
        for name, value in (("keep", keep), ("keep_best", keep_best), ("every", every)):
            if value is not None:
                require_integer(name, value, 1)
        self.directory = to_absolute_path(directory, "Checkpoints") / "checkpoints"
        if time_limit is not None and not time_limit > 0:
            raise ValueError(f"time_limit must be positive seconds, or None; got {time_limit}")
        publishing.check_no_link(self.directory)
        self._best = best
        self.mode = resolve_mode("best", best, mode, optional=True)
        self._keep: dict[str, Any] = {"keep": keep, "keep_best": keep_best, "every": every}
        self._read_only = read_only
        self._writes = not read_only and is_main_process()
        self._damaged: set[int] = set()
        self._written: set[int] = set()
        self._scores: dict[int, dict[str, float]] = {}
        self._storage = publishing.ArrayStorage()
        self._worker = Worker("entracte-save", time_limit=time_limit, remedy=SLOW)
        self._buffer = np.empty(0, np.uint8)
        self._blocked = 0.0
        self._before = 0.0
        with fail_together(f"opening {self.directory}") if not read_only else nullcontext():
            if self._writes:
                publishing.ensure_writable(self.directory)
        self._leftovers = self._writes
        self._recover()

    def _recover(self) -> None:
        """Put back what a run that was killed left half-way; what a living one is about, is not."""
        if (
            self._leftovers
            and directory_lock.find_holder(self.directory.parent, by_others=True) is None
        ):
            publishing.recover(self.directory)
            self._leftovers = False

    def save(
        self,
        state: TrainState,
        *,
        scores: Mapping[str, float] = {},
        config: Mapping[str, Any] | None = None,
        settings: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        """Commit a state under the number of its epoch, replacing a commit of that number.

        Returns once the state is copied to the host; waits first for a save that is under way.

        Args:
            state: all of it is saved but `scores`.
            scores: the event's metrics, kept in the manifest; `best` chooses among them.
            config: the run's configuration, compared on restore.
            settings: what the run is made of; see `trainer.loop.run_description`.

        Raises:
            TypeError: a leaf of the state, or of the configuration, cannot be saved.
            ValueError: two leaves share a path.
        """
        if self._read_only:
            raise RuntimeError(f"{self.directory} was opened with read_only=True: it cannot save")
        with span("save", "wait"), fail_together("the save before this one"):
            self._worker.ready()
        self._before = self.seconds
        began = time.perf_counter()
        epoch = int(state.epoch)
        with span("save", "copy", epoch):
            head = {
                "scores": {name: float(score) for name, score in scores.items()},
                "config": None if config is None else normalize_config(config),
                "settings": settings,
            }
            groups = {
                name: manifests.flatten_section(name, tree)[:2]
                for name, tree in manifests.sections(state).items()
            }
            leaves, self._buffer = host_snapshot.copy_to_host(groups, self._buffer)
        self._blocked += time.perf_counter() - began
        if self._writes:
            self._worker.start(
                lambda: self._write(epoch, leaves, head),
                f"while saving epoch {epoch} to {self.directory}",
            )

    def _write(self, epoch: int, leaves: dict[str, list[Leaf]], head: dict[str, Any]) -> None:
        with span("save", "write", epoch):
            self._commit(epoch, leaves, head)

    def _commit(self, epoch: int, leaves: dict[str, list[Leaf]], head: dict[str, Any]) -> None:
        """Write a commit, then remove those that are no longer kept; runs in the worker."""
        publishing.recover(self.directory)
        publishing.remove_leftovers(self.directory)
        data = self._buffer[
            : host_snapshot.count_bytes(leaf for group in leaves.values() for leaf in group)
        ]
        stage = self.directory / f"{epoch}.staged"
        try:
            with explain_disk_full(data.nbytes, stage):
                publishing.make_staging_folder(self.directory, epoch)
                self._storage.write(stage / publishing.ARRAYS, data)
                checked = {
                    name: host_snapshot.add_checksums(group, data) for name, group in leaves.items()
                }
                manifest = manifests.build_manifest(
                    epoch, checked, run=run_id.ensure_run_id(self.directory), **head
                )
                if self._worker.is_abandoned():
                    raise TimeoutError(f"epoch {epoch} was given up: saving it took too long")
                publishing.publish(stage, manifest)
        except BaseException:
            publishing.discard(stage)
            raise
        self._damaged.discard(epoch)
        self._scores[epoch] = head["scores"]
        self._written.add(epoch)
        self._prune(epoch)

    def _prune(self, newest: int) -> None:
        """Remove the commits that are no longer kept; never the one just written."""
        scores = {number: self._score(number) for number in self._sound()}
        kept = publishing.select_retained(scores, mode=self.mode, **self._keep)
        for number in scores.keys() - kept - {newest}:
            if number in self._written or run_id.removable(self.directory, number):
                publishing.remove(self.directory, number)
        if later := [number for number in scores if number > newest]:
            log.warning(
                f"epoch {newest} was saved to {self.directory}, where {later} come before it when "
                "restoring: move them away if training is to go on from here"
            )

    def _score(self, number: int) -> float | None:
        """Give the score by which a commit is compared, if it has one."""
        if self._best is None:
            return None
        if number not in self._scores:
            try:
                self._scores[number] = manifests.parse_scores(
                    publishing.read_manifest(self.directory, number)
                )
            except DamagedCheckpoint as damage:
                self._skip(number, damage)
                return None
        return self._scores[number].get(self._best)

    def restore(
        self,
        target: TrainState,
        *,
        epoch: int | None = None,
        config: Mapping[str, Any] | None = None,
        strict: bool = False,
        foreign: bool = False,
    ) -> SavedCheckpoint | None:
        """Restore the newest intact commit into a state of the target's structure.

        Damaged commits are skipped, newest first, with a warning that says which and why; they stay
        until a save replaces them. A commit that is intact but does not fit is an error. Memories
        of the commit alone are dropped; those of the target alone are left out of the state, for
        their hooks to make anew. Both are logged.

        Args:
            target: gives the structure, types and places (devices, shardings) of what is restored.
            epoch: restore exactly this one.
            config: compared with the one saved, if both are given; `epochs` and `run` may differ.
            strict: raise at the first damaged commit instead of skipping it.
            foreign: take a commit that another run made, too.

        Returns:
            What was restored; None if there is no commit at all.

        Raises:
            DamagedCommit: no commit is intact, or the one asked for is not.
            FileNotFoundError: there is no commit of this epoch.
            MemoryError: the commit takes more than this machine has.
            ValueError: the commit does not fit target or config; every path and key is listed.
        """

        def read(number: int) -> SavedCheckpoint:
            return restore_checkpoint(
                self.directory, number, self._storage, target, config, foreign=foreign
            )

        return read_on_all_processes(
            self.directory,
            lambda: self._first_intact(epoch, strict, read),
            lambda commit: (-1, 0) if commit is None else commit.identity,
        )

    def _first_intact(
        self, epoch: int | None, strict: bool, read: Callable[[int], SavedCheckpoint]
    ) -> SavedCheckpoint | None:
        self._worker.join()
        self._recover()
        numbers = publishing.list_epochs(self.directory)
        if epoch is not None and epoch not in numbers:
            raise FileNotFoundError(
                f"there is no commit of epoch {epoch} in {self.directory}; there are: {numbers}"
            )
        reasons = []
        for number in reversed(numbers) if epoch is None else [epoch]:
            try:
                commit = read(number)
            except DamagedCheckpoint as damage:
                if strict or epoch is not None:
                    raise
                self._skip(number, damage)
                reasons.append(str(damage))
            else:
                self._damaged.discard(number)
                return commit
        if reasons:
            raise DamagedCheckpoint("no commit is intact:\n  " + "\n  ".join(reasons))
        return None

    def _skip(self, number: int, damage: DamagedCheckpoint) -> None:
        """Leave a commit out from now on; a reader asks again, since its writer may replace it."""
        log.warning(f"skipped a damaged commit: {damage}")
        if not self._read_only:
            self._damaged.add(number)

    def epochs(self) -> list[int]:
        """List the numbers (epochs) of the complete commits, ascending, but for damaged ones."""
        self._worker.join()
        return self._sound()

    def _sound(self) -> list[int]:
        return [n for n in publishing.list_complete(self.directory) if n not in self._damaged]

    def latest(self) -> int | None:
        """Give the number of the newest commit."""
        return max(self.epochs(), default=None)

    def best(self) -> int | None:
        """Give the number of the commit with the best score; of equal ones, the first."""
        scores = {number: self._score(number) for number in self.epochs()}
        return next(iter(publishing.rank_by_score(scores, self.mode)), None)

    def manifest(self, epoch: int) -> dict[str, Any]:
        """Give what a commit says of itself: types, checksums, scores, configuration, versions.

        Raises:
            DamagedCommit: it is missing, or not as it was written.
        """
        self._worker.join()
        return publishing.read_manifest(self.directory, epoch)

    @property
    def seconds(self) -> float:
        """The time that saving has taken so far: what blocked, and the background's."""
        return self._blocked + self._worker.seconds

    @property
    def last_seconds(self) -> float:
        """What of it the last save has taken, 0.0 before the first."""
        return self.seconds - self._before

    def check_for_errors(self) -> None:
        """Raise the failure of a save that ended in the background; on all processes if on one."""
        with fail_together("a save"):
            self._worker.check()

    def wait(self) -> None:
        """Wait until the save under way is durable; raise its failure, on all processes."""
        with span("save", "wait"), fail_together("a save"):
            self._worker.wait()

    def close(self) -> None:
        """Wait for the save under way and free the host copy; may be called again."""
        try:
            with span("save", "wait"):
                self._worker.wait()  # alone: where one process fails, the others close elsewhere
        finally:
            self._buffer = np.empty(0, np.uint8)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
