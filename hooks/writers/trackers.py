"""What the writers for trackers share beside their journal: a run's own files."""

from __future__ import annotations

import importlib
import logging
import os
import shutil
import stat
from pathlib import Path

from trainer.checkpoints import Checkpoints, DamagedCheckpoint, wait_for_saves
from trainer.checkpoints.manifest import parse_scores
from trainer.host.extras import install_command
from trainer.rl.replays.replay_files import list_replay_files

log = logging.getLogger("entracte")


def is_available(who: str, extra: str, enabled: bool, *packages: str) -> bool:
    """Return whether a tracker is enabled and installed; if not, log that it is inactive."""
    if not enabled:
        log.info("%s is disabled: it is inactive and records nothing", who)
        return False
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            log.warning(
                "%s is inactive and records nothing (%s); install it: %s",
                *(who, error, install_command(extra)),
            )
            return False
    return True


def link_artifacts(run: Path, folder: Path) -> dict[int, dict[str, float]]:
    """Collect a run's complete checkpoints and replays in a folder, without copying their bytes.

    They are hard links, if the file system has them: the run may remove its own. A save of this
    process that is in progress is waited for; a save of another process is no checkpoint yet.

    Args:
        run: the run's directory.
        folder: replaced; it then has `checkpoints/<epoch>` and `replays`, if there are any.

    Returns:
        The epochs of the checkpoints, ascending, and the scores of each.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    wait_for_saves()
    scores: dict[int, dict[str, float]] = {}
    with Checkpoints(run, read_only=True) as checkpoints:
        for epoch in checkpoints.epochs():
            copy = folder / "checkpoints" / str(epoch)
            try:
                manifest = checkpoints.manifest(epoch)
                source = checkpoints.directory / str(epoch)
                shutil.copytree(source, copy, copy_function=_link, ignore=_list_special_files)
                scores[epoch] = parse_scores(manifest)
            except (DamagedCheckpoint, OSError, shutil.Error) as error:  # or removed meanwhile
                log.warning("checkpoint %d of %s is no artifact: %s", epoch, run, error)
                shutil.rmtree(copy, ignore_errors=True)
    if (run / "replays").is_dir():
        (folder / "replays").mkdir()
        for _, file in list_replay_files(run / "replays"):
            if stat.S_ISREG(file.lstat().st_mode):
                _link(str(file), str(folder / "replays" / file.name))
    return scores


def _list_special_files(folder: str, names: list[str]) -> list[str]:
    """List what is no file or folder: a link's target would be uploaded, a pipe would block."""
    kinds = {name: os.lstat(os.path.join(folder, name)).st_mode for name in names}
    return [n for n, mode in kinds.items() if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))]


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # on another disk, or on a file system without hard links
        shutil.copy2(source, target)
