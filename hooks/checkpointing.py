"""Checkpoints: restore before all else, commit last, and what that may cost."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import jax

from hooks.combining import Chain, chain
from trainer import Checkpoints, Hook, TrainState
from trainer.checkpoints.directory_lock import DirectoryLock, check_held_everywhere, lock_directory
from trainer.checkpoints.manifest import same_software
from trainer.checkpoints.restore_one import SavedCheckpoint
from trainer.checkpoints.resume_warnings import compare_settings, merge_saved_settings, warning
from trainer.checkpoints.saved_config import normalize_config
from trainer.hook import Gate, RestoredState, RunSettings
from trainer.host.processes import from_main_process, is_main_process
from trainer.loop.run_description import hyperparams

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
    """Resume from a run directory where there is a commit, and commit to it.

    Three parts: the newest intact commit is restored before all else; each `epoch` ends with a
    commit, written in the background; the last epoch is committed at `end`, or on an interrupt, if
    it was not yet. From before anything is read until all is closed no other process can train in
    the directory; to read it, as `follow_checkpoints` and `restore` do, needs no leave.

    Args:
        directory: of the run; commits are in its folder `checkpoints`.
        keep: how many of the newest commits to keep.
        best: metric by which the best commit is kept beside them, such as `val/accuracy`.
        mode: `min` if a smaller `best` is better, `max` if a larger is; None goes by its name.
        config: the run's configuration, plain JSON data and numpy's scalars. A commit made under
            another one is refused; `epochs` and `run` may differ.
        max_cost: a commit that is due waits while it would take saving beyond this share of the
            run's time. None commits at every epoch.
        time_limit: seconds that writing a commit may take. One that takes longer has failed, and
            ends the run; None waits for good.
        foreign: go on from a commit that another run made, and was copied among this one's.

    Raises:
        InUse: another process or thread trains in this directory; before a save, the file
            `lock_directory` was removed or replaced, so that another one may.
        ValueError: the name of `best` does not tell the mode; before training, the directory holds
            another run: what differs is listed.
        ForeignCommit: another run made the newest commit, and `foreign` is not set.
        OSError: the directory cannot be written to.
        TypeError: a value of config cannot be kept as JSON; its path is named.
    """
    if max_cost is not None and not 0 < max_cost <= 1:
        raise ValueError(f"max_cost must be a share in (0, 1], or None; got {max_cost}")
    if config is not None:
        config = normalize_config(config)
    checkpoints = Checkpoints(directory, keep=keep, best=best, mode=mode, time_limit=time_limit)
    began = time.monotonic()
    committed: int | None = None
    held: DirectoryLock | None = None
    asked: RunSettings = {}
    recorded: RunSettings = {}
    compared = False

    def nothing(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        return state

    def describe(rows: RunSettings) -> None:
        nonlocal asked, recorded, compared
        asked, recorded, compared = rows, rows, False

    def compare(commit: SavedCheckpoint) -> None:
        """Say what the script asks for that the commit was not saved with."""
        nonlocal recorded, compared
        saved = commit.manifest.get("settings")
        if compared or not asked or not saved:
            return
        compared = True
        differences = compare_settings(
            saved,
            asked,
            hyperparams(commit.state),
            same_software=same_software(commit.manifest),
        )
        recorded = merge_saved_settings(asked, differences)
        if differences and is_main_process():
            log.warning(warning(f"commit {commit.epoch} in {checkpoints.directory}", differences))

    def restore(template: TrainState) -> RestoredState | None:
        nonlocal began, committed, held
        if held is None or not held.by_this_thread():  # else error hooks ask once more
            held = lock_directory(checkpoints.directory.parent)
            if is_main_process():
                log.info("checkpoints are in %s", checkpoints.directory)
        began, committed = time.monotonic(), None
        commit = checkpoints.restore(template, config=config, foreign=foreign)
        if commit is None:
            return None
        committed = commit.epoch
        compare(commit)
        return RestoredState(commit.state, commit.scores)

    several = jax.process_count() > 1

    def affordable(state: TrainState, metrics: Mapping[str, float], event: str) -> bool:
        if several:  # all come here at once, which they do not where each event begins
            checkpoints.check_for_errors()
        if max_cost is None:
            return True
        taken = checkpoints.seconds + checkpoints.last_seconds
        share = from_main_process({"share": taken / (time.monotonic() - began)})["share"]
        return share <= max_cost

    def dry_run(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        beside = tempfile.TemporaryDirectory(prefix="check-", dir=checkpoints.directory.parent)
        with beside as folder, Checkpoints(folder) as trial:
            trial.save(state, scores=metrics, config=config)
        return state

    def commit(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        nonlocal committed
        if committed != int(state.epoch):
            if held is not None:
                check_held_everywhere(held)
            checkpoints.save(state, scores=metrics, config=config, settings=recorded or None)
            committed = int(state.epoch)
        return state

    def close() -> None:
        nonlocal held
        if held is not None and not held.by_this_thread():  # a fit that was refused ends
            return
        try:
            checkpoints.close()
        finally:
            taken, held = held, None
            if taken is not None:
                taken()

    expects = (best,) if best else ()
    name = "save_checkpoints"
    return chain(
        Hook(
            nothing,
            f"{name}/restore",
            event="start",
            restore=restore,
            describe=describe,
            check_background=None if several else checkpoints.check_for_errors,
        ),
        Hook(
            commit,
            name,
            stage="save",
            gates=(Gate(affordable),),
            expects=expects,
            dry_run=dry_run,
            options={} if best is None else {"best": best, "mode": checkpoints.mode},
        ),
        Hook(
            commit,
            f"{name}/last",
            event="end",
            stage="save",
            dry_run=nothing,
            flush=checkpoints.wait,
            close=close,
        ),
    )
