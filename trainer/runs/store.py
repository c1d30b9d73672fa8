"""The store: what is recorded of all runs, read by anyone and written by many."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trainer.checks.suggestions import suggest_and_list
from trainer.host.redaction import redact_text
from trainer.runs.rows import Artifact, CheckpointRow, Record, RunRow
from trainer.runs.sql.connecting import connect, resolve_store_url
from trainer.runs.sql.connection import Connection, placeholders, upsert
from trainer.runs.sql.table_versions import prepare_tables
from trainer.runs.text import shorten_name

Values = Mapping[str, float | str | None]
"""Metrics by name; None stands for nan."""


class Store:
    """Recorded runs: configuration, metrics, checkpoints, evaluations, heartbeats.

    Any number of processes may write and read at once, and threads may share one store. To write
    the same thing twice changes nothing. Training writes through `Run`, which queues on the disk
    what cannot be delivered; a call of this class has written when it returns, or raises
    `Unreachable`. Close the store, or use `with`.

    Args:
        store: directory that holds the runs, a file `*.sqlite`, or `postgresql://USER@HOST/NAME`.
        create: create the tables, and the file, where they do not exist.
        timeout: seconds to wait for a server, or for a lock.
        read_only: create and upgrade nothing, and let the database refuse every change. This can
            read a file on a read-only disk, and a file of another user.

    Raises:
        FileNotFoundError: the store does not exist, and `create` is False.
        Unreachable: it does not answer.
        ValueError: it is of a newer version, or the URL is of another kind.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, Store(folder) as store:
    ...     store.write_records("digits", 1, 28, {"val/loss": 0.5})
    ...     store.records("digits", ["val/loss"])
    [Record(name='val/loss', epoch=1, step=28, value=0.5)]
    """

    def __init__(
        self,
        store: str | os.PathLike[str],
        *,
        create: bool = True,
        timeout: float = 5.0,
        read_only: bool = False,
    ) -> None:
        self.url = resolve_store_url(store)
        create = create and not read_only
        self.connection: Connection = connect(
            self.url, create=create, timeout=timeout, read_only=read_only
        )
        try:
            prepare_tables(self.connection, create=create, read_only=read_only)
        except BaseException:
            self.connection.close()
            raise

    def register(
        self,
        run: str,
        *,
        directory: str,
        host: str,
        pid: int,
        time: float,
        config: Any = None,
        environment: Mapping[str, str] = {},
    ) -> None:
        """Record a new run, or that a recorded run resumes; `RunRow` describes the arguments."""
        updated = ("directory", "host", "config", "environment", "state", "error", "pid", "beat")
        self.connection.execute(
            upsert("runs", RunRow._fields, ("name",), (*updated, "pause")),
            (
                *(run, directory, host, time, json.dumps(config), json.dumps(dict(environment))),
                *("running", "", pid, None, 0, 0, time, None),
            ),
        )

    def heartbeat(
        self, run: str, *, time: float, epoch: int, step: int, epochs: int | None = None
    ) -> None:
        """Record a heartbeat and the progress of a run."""
        self.connection.execute(
            "UPDATE runs SET pause = CASE WHEN ? > beat THEN ? - beat ELSE pause END, "
            "beat = ?, epoch = ?, step = ?, epochs = ? WHERE name = ?",
            (time, time, time, epoch, step, epochs, run),
        )

    def end(self, run: str, state: str, *, time: float, error: str = "") -> None:
        """Record how a run ended: `finished`, `interrupted` or `failed`, and why."""
        self.connection.execute(
            "UPDATE runs SET state = ?, error = ?, beat = ? WHERE name = ?",
            (state, error, time, run),
        )

    def write_records(self, run: str, epoch: int, step: int, values: Values) -> None:
        """Write metrics, numbers or texts by name; they replace those of this epoch and step."""
        self.write_many_records([(run, epoch, step, values)])

    def write_many_records(self, records: Iterable[tuple[str, int, int, Values]]) -> None:
        """Write the arguments (run, epoch, step, values) of several `write_records` at once."""
        columns = ("run", "name", "epoch", "step", "value", "text")
        self.connection.execute_many(
            upsert("records", columns, columns[:4]),
            (
                (run, shorten_name(name), epoch, step, *_to_columns(value))
                for run, epoch, step, values in records
                for name, value in values.items()
            ),
        )

    def rewind(self, run: str, epoch: int, step: int) -> None:
        """Delete what a run recorded beyond the point where it resumes.

        At epoch 0 it starts fresh, and everything is deleted.
        """
        with self.connection.transaction():
            self.connection.execute(
                "DELETE FROM records WHERE run = ? AND (epoch > ? OR step > ? OR ? = 0)",
                (run, epoch, step, epoch),
            )
            least = epoch if epoch else -1
            for table in ("commits", "requests", "results", "artifacts"):
                self.connection.execute(
                    f"DELETE FROM {table} WHERE run = ? AND epoch > ?", (run, least)
                )
            self.connection.execute(
                "UPDATE runs SET epoch = ?, step = ? WHERE name = ?", (epoch, step, run)
            )

    def write_checkpoint(self, run: str, checkpoint: CheckpointRow) -> None:
        """Record a checkpoint that is complete."""
        row = checkpoint._replace(scores=json.dumps(checkpoint.scores))  # type: ignore[arg-type]
        self.connection.execute(
            upsert("commits", ("run", *CheckpointRow._fields, "present"), ("run", "epoch")),
            (run, *row, 1),
        )

    def mark_removed(self, run: str, epochs: Iterable[int]) -> None:
        """Record that checkpoints were removed; what was measured of them stays."""
        self.connection.execute_many(
            "UPDATE commits SET present = 0 WHERE run = ? AND epoch = ?",
            [(run, epoch) for epoch in epochs],
        )

    def write_artifact(self, run: str, artifact: Artifact) -> None:
        """Record a file that a run wrote; its path may be relative to the run's directory."""
        statement = upsert("artifacts", ("run", *Artifact._fields), ("run", "path"))
        self.connection.execute(statement, (run, *artifact))

    def forget_artifacts(self, run: str, directory: str) -> None:
        """Forget the files that no longer exist in a run's directory on this machine."""
        if not os.path.isdir(directory):  # it was moved since: they are elsewhere
            return
        rows = self.connection.execute("SELECT path FROM artifacts WHERE run = ?", (run,))
        self.connection.execute_many(
            "DELETE FROM artifacts WHERE run = ? AND path = ?",
            [
                (run, path)
                for (path,) in rows
                if not os.path.isabs(path) and not os.path.lexists(os.path.join(directory, path))
            ],
        )

    def runs(self) -> list[RunRow]:
        """Return all runs, the newest first."""
        rows = self.connection.execute(
            f"SELECT {', '.join(RunRow._fields)} FROM runs ORDER BY created DESC, name"
        )
        return [RunRow.read(row) for row in rows]

    def run(self, name: str) -> RunRow:
        """Return one run.

        Raises:
            KeyError: no run has this name; the message lists the names.
        """
        rows = {row.name: row for row in self.runs()}
        if name not in rows:
            known = suggest_and_list(name, list(rows))
            raise KeyError(f"no run {name!r} in {self.connection.label}{known}")
        return rows[name]

    def find_runs(self, epoch: int, checksum: str) -> set[str]:
        """Return the names of the runs that recorded this checkpoint."""
        rows = self.connection.execute(
            "SELECT run FROM commits WHERE epoch = ? AND checksum = ?", (epoch, checksum)
        )
        return {name for (name,) in rows}

    def read_progress(self, row: RunRow) -> RunRow:
        """Return a run's row with the newest epoch and step that are known.

        Both heartbeats and records contain them; a run may write only one of the two.
        """
        newest = self.connection.execute(
            "SELECT epoch, step FROM records WHERE run = ? AND epoch >= ? "
            "ORDER BY epoch DESC, step DESC LIMIT 1",
            (row.name, row.epoch),
        )
        epoch, step = max([(row.epoch, row.step), *map(tuple, newest)])
        return row._replace(epoch=epoch, step=step)

    def records(
        self, run: str, names: Sequence[str] | None = None, *, since: int = 0
    ) -> list[Record]:
        """Return recorded metrics of these names, or all, from epoch `since`, by epoch and step."""
        if names is not None and not names:
            return []
        chosen = "" if names is None else f" AND name IN ({placeholders(names)})"
        rows = self.connection.execute(
            "SELECT name, epoch, step, value, text FROM records WHERE run = ? AND epoch >= ?"
            f"{chosen} ORDER BY epoch, step, name",
            (run, since, *(shorten_name(name) for name in names or ())),
        )
        return [Record.read(row) for row in rows]

    def latest(self, run: str) -> dict[str, Record]:
        """Return the last value of each metric, by name."""
        rows = self.connection.execute(
            "SELECT name, epoch, step, value, text FROM (SELECT name, epoch, step, value, text, "
            "ROW_NUMBER() OVER (PARTITION BY name ORDER BY epoch DESC, step DESC) AS place "
            "FROM records WHERE run = ?) AS placed WHERE place = 1 ORDER BY name",
            (run,),
        )
        return {record.name: record for record in map(Record.read, rows)}

    def checkpoints(self, run: str, *, present: bool = False) -> list[CheckpointRow]:
        """Return the checkpoints by epoch; with `present`, only those that still exist."""
        rows = self.connection.execute(
            f"SELECT {', '.join(CheckpointRow._fields)} FROM commits "
            "WHERE run = ? AND present >= ? ORDER BY epoch",
            (run, int(present)),
        )
        return [CheckpointRow.read(row) for row in rows]

    def artifacts(self, run: str) -> list[Artifact]:
        """Return the files that a run wrote, by epoch and path, where its directory now is."""
        rows = self.connection.execute(
            f"SELECT {', '.join(Artifact._fields)}, (SELECT directory FROM runs WHERE name = run) "
            "FROM artifacts WHERE run = ? ORDER BY epoch, path",
            (run,),
        )
        return [
            Artifact(os.path.join(directory or "", path), *rest) for path, *rest, directory in rows
        ]

    def remove(self, run: str) -> None:
        """Delete a run from the store; its directory stays."""
        with self.connection.transaction():
            for table in ("records", "commits", "requests", "results", "artifacts"):
                self.connection.execute(f"DELETE FROM {table} WHERE run = ?", (run,))
            self.connection.execute("DELETE FROM runs WHERE name = ?", (run,))

    def close(self) -> None:
        """Close the connection; the store cannot be used again."""
        self.connection.close()

    def __repr__(self) -> str:
        return f"Store({redact_text(self.url)!r})"

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _to_columns(value: float | str | None) -> tuple[float | None, str | None]:
    if isinstance(value, str):
        return None, value
    return None if value is None or math.isnan(value) else float(value), None
