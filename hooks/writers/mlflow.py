"""A writer for MLflow: the run in a local database, or on a tracking server."""

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

import numpy as np

from hooks.writers.trackers import JournaledWriter, JournalRow, is_available, link_artifacts
from trainer.checks.paths import to_absolute_path
from trainer.host.redaction import redact_settings
from trainer.runs.text import clean

log = logging.getLogger("entracte")

BATCH = 1000
"""Numbers that MLflow accepts at once."""

_LOCAL = "sqlite:///"

Points = dict[tuple[str, int], tuple[float, int]]
"""Name and step to a number and its unix time in milliseconds."""


class MLflow(JournaledWriter):
    """Records a run in MLflow; needs `entracte[mlflow]`.

    During training, records are in a journal on the disk. When the run is over, was interrupted or
    failed, the records that MLflow lacks are delivered, to the same MLflow run each time. If that
    run has numbers that differ from the journal, because training went back, a new MLflow run is
    created and the old one deleted (MLflow can restore it). After a kill -9, or to see a run in
    progress, `MLflow(directory).deliver()` does the same, from any process.

    Numbers are recorded as metrics, texts, images and videos as artifacts; traces and histograms
    are not. If the package is not installed, or with `enabled=False`, nothing is recorded, as a
    line in the log says. MLflow's telemetry is off, unless the environment says otherwise.

    Args:
        directory: of the run; `mlflow` in it is created.
        experiment: of the run; created if absent.
        name: of the run; the name of the directory if None.
        uri: of the tracking server or database; SQLite in the folder `mlflow` if None, which needs
            no network: `mlflow ui --backend-store-uri sqlite:///<directory>/mlflow/mlflow.db`.
        config: the run's configuration, plain JSON data: becomes the run's parameters, each with
            its value at the first delivery, and `config.json` with the present values.
        artifacts: a run's directory, whose checkpoints and replays of then are copied there too.
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
        if uri is not None and uri.startswith(_LOCAL):  # opened later, perhaps from another folder
            self._uri = f"{_LOCAL}{to_absolute_path(uri.removeprefix(_LOCAL), 'MLflow')}"
        self._config = redact_settings(dict(config or {}))
        self._artifacts = (
            None if artifacts is None else to_absolute_path(artifacts, "MLflow").resolve()
        )
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when it is imported
        database = ("sqlalchemy", "alembic") if self._uri.startswith("sqlite:") else ()
        active = is_available("MLflow", "mlflow", enabled, "mlflow.tracking", *database)
        self.open_journal(self.directory / "mlflow", active=active)

    def deliver(self) -> None:
        """Deliver all records that MLflow lacks; if it raises, the journal is unchanged."""
        if not (rows := self.rows()):
            return
        with _without_stray_folder():
            tracking = importlib.import_module("mlflow.tracking")
            client = tracking.MlflowClient(tracking_uri=self._uri)
            self._deliver(client, rows)
        self.mark_delivered()

    def _deliver(self, client: Any, rows: list[JournalRow]) -> None:
        lacking, run = _collect_points(rows), None
        if self.identity is not None and (run := _find_active(client, self.identity)):
            recorded = _list_numbers(client, run)
            if all(
                place in lacking and np.array_equal(lacking[place][0], value, equal_nan=True)
                for place, value in recorded
            ):
                known = dict(recorded)
                lacking = {place: point for place, point in lacking.items() if place not in known}
            else:
                log.warning(
                    "MLflow: %s has other numbers than the journal; it is deleted and rewritten",
                    self.identity,
                )
                client.delete_run(self.identity)
                run = None
        if run is None:
            run = client.create_run(self._experiment_in(client), run_name=self._name)
            self.identity = run.info.run_id
        self._log_numbers(client, run, lacking)
        self._log_files(client, run.info.run_id, rows)
        client.set_terminated(run.info.run_id)

    def _experiment_in(self, client: Any) -> str:
        """Return the experiment's id; a local database has its artifacts beside it."""
        found = client.get_experiment_by_name(self._experiment)
        if found:
            return str(found.experiment_id)
        place = (self.folder / "artifacts").as_uri() if self._local else None
        return str(client.create_experiment(self._experiment, artifact_location=place))

    def _log_numbers(self, client: Any, run: Any, points: Points) -> None:
        entities = importlib.import_module("mlflow.entities")
        metrics = [
            entities.Metric(name, value, milliseconds, step)
            for (name, step), (value, milliseconds) in points.items()
        ]
        for begin in range(0, len(metrics), BATCH):
            client.log_batch(run.info.run_id, metrics=metrics[begin : begin + BATCH])
        for name, value in _flatten(self._config):
            if name not in run.data.params:  # parameters cannot be changed
                client.log_param(run.info.run_id, name, value)

    def _log_files(self, client: Any, identity: str, rows: Sequence[JournalRow]) -> None:
        """Log texts and pictures by name and step, the configuration, checkpoints and replays."""
        if self._config:
            client.log_dict(identity, self._config, "config.json")
        for row in rows:
            for name, (kind, value) in row.values.items():
                folder_name = f"{kind}s/{_to_valid_name(name)}"
                if kind == "text":
                    client.log_text(identity, clean(value), f"{folder_name}/{row.step}.txt")
                elif kind in ("image", "video"):
                    client.log_artifact(identity, str(value), folder_name)
        if self._artifacts:
            folder = self.folder / "collected"
            link_artifacts(self._artifacts, folder)
            client.log_artifacts(identity, str(folder))
            shutil.rmtree(folder)


@contextlib.contextmanager
def _without_stray_folder() -> Iterator[None]:
    """Remove the empty `mlruns` that MLflow creates where it runs, whatever its store."""
    stray = Path("mlruns").absolute()
    there = stray.exists()
    try:
        yield
    finally:
        if not there:
            with contextlib.suppress(OSError):  # there is none, or it is not empty
                stray.rmdir()


def _collect_points(rows: Sequence[JournalRow]) -> Points:
    """Collect the numbers of a journal as MLflow stores them: infinity as the largest float."""
    largest = sys.float_info.max
    return {
        (_to_valid_name(name), row.step): (
            min(max(value, -largest), largest) if value == value else math.nan,
            int(row.unix_seconds * 1000),
        )
        for row in rows
        for name, (kind, value) in row.values.items()
        if kind == "number"
    }


def _find_active(client: Any, identity: str) -> Any:
    """Return a run that exists and was not deleted, or None."""
    exceptions = importlib.import_module("mlflow.exceptions")
    try:
        run = client.get_run(identity)
    except exceptions.MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None


def _list_numbers(client: Any, run: Any) -> list[tuple[tuple[str, int], float]]:
    """List name and step, and value, of each number that a run has in MLflow."""
    return [
        ((name, metric.step), metric.value)
        for name in run.data.metrics
        for metric in client.get_metric_history(run.info.run_id, name)
    ]


def _to_valid_name(name: str) -> str:
    """Make a name valid for MLflow: a path of letters, digits, dashes, dots, spaces and colons.

    >>> _to_valid_name("val/loss"), _to_valid_name("../a\x1b[2J"), _to_valid_name("/")
    ('val/loss', 'a__2J', '_')
    """
    parts = re.sub(r"[^/\w.\- :]", "_", clean(name)).split("/")
    return "/".join(part for part in parts if part not in ("", ".", ".."))[:250] or "_"


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield a configuration's settings by path.

    >>> list(_flatten({"optimizer": {"rate": 0.1}, "seed": 0}))
    [('optimizer/rate', '0.1'), ('seed', '0')]
    """
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}/")
        else:
            yield _to_valid_name(f"{prefix}{key}"), json.dumps(value)[:6000]
