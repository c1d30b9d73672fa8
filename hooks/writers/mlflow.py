"""MLflow: the run in a local database, or on a tracking server."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import math
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hooks.writers.trackers import JournalRow, TrackerJournal, is_available, link_artifacts
from hooks.writers.values import Value
from trainer.checks.paths import to_absolute_path
from trainer.host.redaction import redact_settings
from trainer.runs.text import clean

log = logging.getLogger("entracte")

BATCH = 1000
"""Numbers that MLflow takes at once."""

_LOCAL = "sqlite:///"

Place = tuple[str, int]
"""Name and step of a number."""

Point = tuple[float, int]
"""A number, and the unix time in milliseconds."""


class MLflow:
    """Records a run in MLflow; needs `entracte[mlflow]`.

    While training goes on, records are in a journal on the disk. When the run is over, was
    interrupted or failed, what MLflow lacks of it is delivered, to the same MLflow run each time.
    Where that has numbers that the journal has not or has otherwise, since training went back and
    came by with others, the journal makes a new MLflow run and the old one is deleted (as MLflow
    does, which can restore it). After a kill -9, or to see a run that goes on,
    `MLflow(directory).deliver()` does the same, from any process.

    Numbers are recorded, texts, images and videos as artifacts of the run; traces and histograms
    are not. Where the package is not installed, or with `enabled=False`, nothing is, as one line in
    the log says. MLflow's own reports of its use are turned off, unless the environment says
    otherwise.

    Args:
        directory: of the run; `mlflow` in it is made.
        experiment: that the run belongs to; made if absent.
        name: of the run; that of the directory if None.
        uri: of the tracking server or database; SQLite in the folder `mlflow` if None, which needs
            no network: `mlflow ui --backend-store-uri sqlite:///<directory>/mlflow/mlflow.db`.
        config: the run's configuration, plain JSON data: the run's parameters, each as it was when
            it first was delivered, and `config.json` as it is now.
        artifacts: a run's directory, whose commits and replays are delivered too: those that it
            holds then. They are copied.
        enabled: False to record nothing.

    Raises:
        OSError: the directory cannot be written to.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     writer = MLflow(folder, enabled=False)
    ...     writer.write(28, {"train/loss": 0.5})
    ...     writer.close()
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        experiment: str = "entracte",
        name: str | None = None,
        uri: str | None = None,
        config: Mapping[str, Any] | None = None,
        artifacts: str | os.PathLike[str] | None = None,
        enabled: bool = True,
    ) -> None:
        self.directory = to_absolute_path(directory, "MLflow").resolve()
        self._experiment = experiment
        self._name = self.directory.name if name is None else name
        self._local = uri is None
        self._uri = f"{_LOCAL}{self.directory / 'mlflow' / 'mlflow.db'}" if uri is None else uri
        if uri is not None and uri.startswith(_LOCAL):  # it is opened when the run is over
            self._uri = f"{_LOCAL}{to_absolute_path(uri.removeprefix(_LOCAL), 'MLflow')}"
        self._config = redact_settings(dict(config or {}))
        self._artifacts = (
            None if artifacts is None else to_absolute_path(artifacts, "MLflow").resolve()
        )
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when it is imported
        database = ("sqlalchemy", "alembic") if self._uri.startswith("sqlite:") else ()
        active = is_available("MLflow", "mlflow", enabled, "mlflow.tracking", *database)
        self._journal = TrackerJournal(self.directory / "mlflow", "MLflow", active=active)

    def resume(self, step: int, epoch: int) -> None:
        """Drop what lies beyond step and epoch."""
        self._journal.resume(step, epoch)

    def write(self, step: int, values: Mapping[str, Value]) -> None:
        """Put values in the journal."""
        self._journal.write(step, values)

    def dry_run(self, step: int, values: Mapping[str, Value]) -> None:
        """Put values in the journal and take them away again."""
        self._journal.dry_run(step, values)

    def flush(self) -> None:
        """Wait until the journal is on the disk."""
        self._journal.flush()

    def close(self) -> None:
        """Close the journal and deliver what is new; a failure to deliver is logged, not raised."""
        self._journal.close(self.deliver)

    def deliver(self) -> None:
        """Give MLflow what it lacks of all that is on record.

        Raises:
            Exception: whatever `mlflow` raises; the journal is as it was.
        """
        if not (rows := self._journal.rows()):
            return
        with _without_stray_folder():
            self._deliver(rows)

    def _deliver(self, rows: list[JournalRow]) -> None:
        journal = self._journal
        tracking = importlib.import_module("mlflow.tracking")
        client = tracking.MlflowClient(tracking_uri=self._uri)
        points = _points(rows)
        lacking, run = points, None
        if journal.identity is not None and (run := _live(client, journal.identity)):
            there = _recorded(client, run)
            if all(_same(points.get(place), value) for place, value in there):
                known = {place for place, _ in there}
                lacking = {place: point for place, point in points.items() if place not in known}
            else:
                log.warning(
                    "MLflow: %s has other numbers than the journal; it is deleted and written anew",
                    journal.identity,
                )
                client.delete_run(journal.identity)
                run = None
        if run is None:
            run = client.create_run(self._experiment_in(client), run_name=self._name)
            journal.identity = run.info.run_id
        self._log_numbers(client, run, lacking)
        self._log_files(client, run.info.run_id, rows)
        client.set_terminated(run.info.run_id)
        journal.mark_delivered()

    def _experiment_in(self, client: Any) -> str:
        """Give the experiment's id; of a local database the artifacts are beside it."""
        found = client.get_experiment_by_name(self._experiment)
        if found:
            return str(found.experiment_id)
        place = (self._journal.folder / "artifacts").as_uri() if self._local else None
        return str(client.create_experiment(self._experiment, artifact_location=place))

    def _log_numbers(self, client: Any, run: Any, points: Mapping[Place, Point]) -> None:
        entities = importlib.import_module("mlflow.entities")
        metrics = [
            entities.Metric(name, value, milliseconds, step)
            for (name, step), (value, milliseconds) in points.items()
        ]
        for begin in range(0, len(metrics), BATCH):
            client.log_batch(run.info.run_id, metrics=metrics[begin : begin + BATCH])
        for name, value in _flat(self._config):
            if name not in run.data.params:  # which cannot be changed
                client.log_param(run.info.run_id, name, value)

    def _log_files(self, client: Any, identity: str, rows: Sequence[JournalRow]) -> None:
        """Log texts and pictures by name and step, the configuration, commits and replays."""
        if self._config:
            client.log_dict(identity, self._config, "config.json")
        for row in rows:
            for name, kept in row.values.items():
                place = f"{kept.kind}s/{_valid(name)}"
                if kept.kind == "text":
                    client.log_text(identity, clean(kept.value), f"{place}/{row.step}.txt")
                elif kept.kind in ("image", "video"):
                    client.log_artifact(identity, str(kept.value), place)
        if self._artifacts:
            folder = self._journal.folder / "collected"
            link_artifacts(self._artifacts, folder)
            client.log_artifacts(identity, str(folder))
            shutil.rmtree(folder)


@contextlib.contextmanager
def _without_stray_folder() -> Iterator[None]:
    """Take away the empty `mlruns` that MLflow makes where a process is, whatever store it has."""
    stray = Path("mlruns").absolute()
    there = stray.exists()
    try:
        yield
    finally:
        if not there:
            with contextlib.suppress(OSError):  # it made none, or something is in it
                stray.rmdir()


def _points(rows: Sequence[JournalRow]) -> dict[Place, Point]:
    """Give the numbers of a journal as MLflow keeps them: the largest it knows for infinity."""
    most = sys.float_info.max
    return {
        (_valid(name), row.step): (
            min(max(kept.value, -most), most) if kept.value == kept.value else math.nan,
            int(row.unix_seconds * 1000),
        )
        for row in rows
        for name, kept in row.values.items()
        if kept.kind == "number"
    }


def _live(client: Any, identity: str) -> Any:
    """Give a run that is there and was not deleted, or None."""
    exceptions = importlib.import_module("mlflow.exceptions")
    try:
        run = client.get_run(identity)
    except exceptions.MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None


def _recorded(client: Any, run: Any) -> list[tuple[Place, float]]:
    """List the numbers that a run has in MLflow."""
    return [
        ((name, metric.step), metric.value)
        for name in run.data.metrics
        for metric in client.get_metric_history(run.info.run_id, name)
    ]


def _same(point: Point | None, value: float) -> bool:
    return point is not None and (point[0] == value or (point[0] != point[0] and value != value))


def _valid(name: str) -> str:
    """Give a name that MLflow takes: a path of letters, digits, dashes, dots, spaces and colons.

    >>> _valid("val/loss"), _valid("../a\x1b[2J"), _valid("/")
    ('val/loss', 'a__2J', '_')
    """
    parts = re.sub(r"[^/\w.\- :]", "_", clean(name)).split("/")
    return "/".join(part for part in parts if part not in ("", ".", ".."))[:250] or "_"


def _flat(config: Mapping[str, Any], under: str = "") -> Iterator[tuple[str, str]]:
    """Give a configuration's settings by path.

    >>> list(_flat({"optimizer": {"rate": 0.1}, "seed": 0}))
    [('optimizer/rate', '0.1'), ('seed', '0')]
    """
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{under}{key}/")
        else:
            yield _valid(f"{under}{key}"), json.dumps(value)[:6000]
