"""Save and restore checkpoints: restore before all else, save last, within a share of time."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from typing import Any

from hooks.combining import Chain, chain
from trainer import Checkpoints, Hook, TrainState
from trainer.checkpoints.manifest import has_same_software
from trainer.checkpoints.restore_one import SavedCheckpoint
from trainer.checkpoints.resume_warnings import (
    compare_settings,
    format_warning,
    mark_starting_arrays,
    merge_saved_settings,
)
from trainer.checkpoints.saved_config import normalize_config
from trainer.checkpoints.storage.run_lock import RunLock, lock_run
from trainer.checkpoints.storage.run_paths import remove_tree
from trainer.checkpoints.storage.shared_directory import check_shared
from trainer.hook import SKIP, Gate, RestoredState, RunSettings
from trainer.host.exception_notes import annotate_errors
from trainer.host.processes import draw_shared_name, fail_together, is_main_process
from trainer.loop.run_description import read_hyperparams

log = logging.getLogger("entracte")


def save_checkpoints(
    directory: str | os.PathLike[str],
    *,
    keep: int = 3,
    best: str | None = None,
    mode: str | None = None,
    config: Mapping[str, Any] | None = None,
    max_cost: float | None = 0.05,
    time_limit: float | None = 600.0,
    foreign: bool = False,
) -> Chain:
    """Save checkpoints in a run directory, and resume from the newest one there.

    The newest intact checkpoint is restored before all else; each `epoch` ends with a save, written
    in the background; the last epoch is saved at `end`, or on an interrupt, if it was not yet. No
    other process can train in the directory until the end; reading it is always allowed.

    Args:
        directory: of the run; checkpoints are in its folder `checkpoints`. Or the URL of a run in a
            bucket, `s3://bucket/runs/digits` or `gs://...`, which then holds checkpoints alone.
        keep: how many of the newest checkpoints to keep.
        best: metric by which the best checkpoint is kept in addition, such as `val/accuracy`.
        mode: `min` if a smaller `best` is better, `max` if a larger is; None infers it by name.
        config: the run's configuration, plain JSON data and numpy's scalars. A checkpoint made
            under another one is refused; `epochs` and `run` may differ.
        max_cost: share of the run's time that saves may take, or they wait. None saves at every
            epoch.
        time_limit: seconds that writing a checkpoint may take, or it has failed and ends the run;
            None waits without limit.
        foreign: resume from a checkpoint of another run that was copied into this directory.

    Raises:
        BucketError: the bucket refuses, or does not answer.
        DirectoryInUse: another process or thread trains in this directory; before a save, the file
            `lock` was removed or replaced, so that another one may.
        ValueError: the name of `best` does not imply the mode; before training, the directory holds
            another run: the differences are listed.
        ForeignCheckpoint: another run made the newest checkpoint, and `foreign` is not set.
        OSError: the directory cannot be written to; or is not one that all processes share.
        TypeError: a value of config cannot be saved as JSON; its path is named.
    """
    if max_cost is not None and not 0 < max_cost <= 1:
        raise ValueError(f"max_cost must be a share in (0, 1], or None; got {max_cost}")
    if config is not None:
        config = normalize_config(config)
    checkpoints = Checkpoints(directory, keep=keep, best=best, mode=mode, time_limit=time_limit)
    began = time.monotonic()
    saved_epoch: int | None = None
    lock: RunLock | None = None
    to_compare: RunSettings = {}
    recorded: RunSettings = {}

    def describe(rows: RunSettings) -> None:
        nonlocal to_compare, recorded
        to_compare = recorded = rows

    def compare(checkpoint: SavedCheckpoint, start: TrainState) -> None:
        """Log the settings of the script that differ from those of the checkpoint."""
        nonlocal to_compare, recorded
        saved = checkpoint.manifest.get("settings")
        if not to_compare or not saved:
            return
        same_software = has_same_software(checkpoint.manifest)
        hyperparams = read_hyperparams(checkpoint.state)
        differences = compare_settings(saved, to_compare, hyperparams, same_software=same_software)
        where = f"checkpoint {checkpoint.epoch} in {checkpoints.directory}"
        with annotate_errors(f"in restoring {where}"):
            differences = mark_starting_arrays(differences, start, checkpoint.state)
        recorded, to_compare = merge_saved_settings(to_compare, differences), {}
        if differences and is_main_process():
            log.warning(format_warning(where, differences))

    def restore(template: TrainState) -> RestoredState | None:
        nonlocal began, saved_epoch, lock
        if lock is None or not lock.by_this_thread():  # else error hooks restore once more
            lock = lock_run(checkpoints.directory.parent)
            check_shared(checkpoints.directory.parent)
            if is_main_process():
                log.info("checkpoints are in %s", checkpoints.directory)
        began, saved_epoch = time.monotonic(), None
        checkpoint = checkpoints.restore(template, config=config, foreign=foreign)
        if checkpoint is None:
            return None
        saved_epoch = checkpoint.epoch
        compare(checkpoint, template)
        return RestoredState(checkpoint.state, checkpoint.scores)

    def check_lock() -> None:
        if lock is not None:
            lock.check()

    def is_affordable(state: TrainState, metrics: Mapping[str, float], event: str) -> bool:
        """Return whether a save is within its share of time; of several processes the main asks."""
        taken = checkpoints.seconds + checkpoints.last_seconds
        if max_cost is not None and taken / (time.monotonic() - began) > max_cost:
            return False
        check_lock()
        return True

    def dry_run(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        beside = checkpoints.directory.parent / f"check-{draw_shared_name()}"
        try:
            with Checkpoints(beside) as trial:
                trial.save(state, scores=metrics, config=config)
        finally:
            if is_main_process():
                remove_tree(beside)
        return state

    def save(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        nonlocal saved_epoch
        if saved_epoch != int(state.epoch):
            checkpoints.save(state, scores=metrics, config=config, settings=recorded or None)
            saved_epoch = int(state.epoch)
        return state

    def save_last(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        if saved_epoch != int(state.epoch):
            with fail_together("checking the lock of the run"):
                check_lock()
        return save(state, metrics)

    def close(error: BaseException | None) -> None:
        nonlocal lock
        if lock is not None and not lock.by_this_thread():  # closed by a fit that was refused
            return
        try:
            checkpoints.close(failed=error is not None)
        finally:
            release, lock = lock, None
            if release is not None:
                release()

    name = "save_checkpoints"
    return chain(
        Hook(
            SKIP,
            f"{name}/restore",
            event="start",
            restore=restore,
            describe=describe,
            check_background=checkpoints.check_for_errors,
        ),
        Hook(
            save,
            name,
            stage="save",
            gates=(Gate(is_affordable),),
            expects=(best,) if best else (),
            dry_run=dry_run,
            options={} if best is None else {"best": best, "mode": checkpoints.mode},
        ),
        Hook(
            save_last,
            f"{name}/last",
            event="end",
            stage="save",
            dry_run=SKIP,
            flush=checkpoints.wait,
            close=close,
        ),
    )
