"""A writer for Weights & Biases: the run as a local folder, which `wandb sync` uploads."""

from __future__ import annotations

import contextlib
import html
import importlib
import os
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hooks.writers.trackers import JournaledWriter, JournalValue, is_available, link_artifacts
from trainer.checks.paths import to_absolute_path
from trainer.host.redaction import redact_command, redact_settings
from trainer.runs.text import clean


class WandB(JournaledWriter):
    """Records a run for Weights & Biases, without a network; needs `entracte[wandb]`.

    During training, records are in a journal on the disk. When the run is over, was interrupted or
    failed, they are written to a folder `wandb/offline-run-...` in the directory, which replaces
    the previous one. `wandb sync` uploads it, under the same id each time. After a kill -9, or to
    see a run in progress, `WandB(directory).deliver()` does the same, from any process.

    Numbers, texts, images, videos and histograms are recorded, traces are not. If the package is
    not installed, with `WANDB_MODE=disabled` or `enabled=False`, nothing is recorded, as a line in
    the log says.

    Args:
        directory: of the run; `wandb` in it is created.
        project: of the run.
        name: of the run; the name of the directory if None.
        config: the run's configuration, plain JSON data.
        artifacts: a run's directory, whose checkpoints and replays of then are delivered too, by
            links that take no space, each checkpoint as a version of one artifact.
        enabled: False to record nothing.

    Raises:
        OSError: the directory cannot be written to.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     writer = WandB(folder, enabled=False)
    ...     writer.write(28, {"train/loss": 0.5})
    ...     writer.close()
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        project: str = "entracte",
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        artifacts: str | os.PathLike[str] | None = None,
        enabled: bool = True,
    ) -> None:
        self.directory = to_absolute_path(directory, "WandB").resolve()
        self._about = {
            "project": project,
            "name": self.directory.name if name is None else name,
            "config": redact_settings(dict(config or {})),
        }
        self._artifacts = (
            None if artifacts is None else to_absolute_path(artifacts, "WandB").resolve()
        )
        enabled = enabled and os.environ.get("WANDB_MODE") != "disabled"
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it would use the network
        active = is_available("WandB", "wandb", enabled, "wandb")
        self.open_journal(self.directory / "wandb", active=active)

    def deliver(self) -> None:
        """Write the folder that `wandb sync` uploads; if it raises, the journal is unchanged."""
        if not (rows := self.rows()):
            return
        wandb = importlib.import_module("wandb")
        if self.identity is None:
            self.identity = secrets.token_hex(4)
        for earlier in self.folder.glob(f"offline-run-*-{self.identity}"):
            shutil.rmtree(earlier)
        with _command_redacted():
            run = wandb.init(
                **self._about,
                id=self.identity,
                dir=str(self.directory),
                mode="offline",
                reinit="create_new",  # the user's own run stays open
                settings=wandb.Settings(console="off", silent=True, save_code=False),
            )
        try:
            for row in rows:
                values = {name: _convert(wandb, value) for name, value in row.values.items()}
                run.log({**values, "_timestamp": row.unix_seconds}, step=row.step)
            if self._artifacts:
                _log_artifacts(wandb, run, self._artifacts, self.folder / "artifacts")
        finally:
            run.finish()
        self.mark_delivered()


@contextlib.contextmanager
def _command_redacted() -> Iterator[None]:
    """Remove passwords from the command line, which `wandb` reads and stores."""
    before = sys.argv
    sys.argv = redact_command(before)
    try:
        yield
    finally:
        sys.argv = before


def _convert(wandb: Any, value: JournalValue) -> Any:
    """Convert a value to `wandb`'s type for it."""
    match value.kind:
        case "text":
            return wandb.Html(f"<pre>{html.escape(clean(value.value))}</pre>", inject=False)
        case "histogram":
            return wandb.Histogram(np_histogram=value.value)
        case "image":
            return wandb.Image(str(value.value))
        case "video":
            return wandb.Video(str(value.value), format="gif")
        case _:
            return value.value


def _log_artifacts(wandb: Any, run: Any, source: Path, folder: Path) -> None:
    """Log checkpoints, each as a version of one artifact, and replays, as another."""
    for epoch, scores in link_artifacts(source, folder).items():
        metadata = {"epoch": epoch, **scores}
        checkpoint = wandb.Artifact(f"checkpoint-{run.id}", "checkpoint", metadata=metadata)
        _add_files(checkpoint, folder / "checkpoints" / str(epoch))
        run.log_artifact(checkpoint, aliases=[f"epoch-{epoch}"])
    if (folder / "replays").exists():
        replays = _add_files(wandb.Artifact(f"replays-{run.id}", "replay"), folder / "replays")
        run.log_artifact(replays)


def _add_files(artifact: Any, folder: Path) -> Any:
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        # Immutable, or every byte would be copied to a folder in the user's home.
        name = str(file.relative_to(folder))
        artifact.add_file(str(file), name=name, skip_cache=True, policy="immutable")
    return artifact
