"""The store: what is on record of all runs, to be read by anyone and written by many."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trainer.checks.suggestions import suggest_and_list
from trainer.host.redaction import redact_text
from trainer.runs import table_versions
from trainer.runs.connections import Connection, connect, resolve_store_url
from trainer.runs.rows import Artifact, CheckpointRow, Record, RunRow
from trainer.runs.text import shorten_name

Values = Mapping[str, float | str | None]
"""Of metrics by name; None is a number that is none."""


class Store:
    """What is on record of runs: configuration, metrics, commits, evaluations, signs of life.

    Any number of processes may write and read at once, and threads may share one. To write what was
    written already changes nothing. Training writes through `Run`, which queues on the disk what
    cannot be delivered; what is called here is done when it returns, or raises `Unreachable`. Close
    it, or use `with`.

    Args:
        store: directory that holds the runs, a file `*.sqlite`, or `postgresql://USER@HOST/NAME`.
        create: make the tables, and the file, where there are none.
        patience: seconds to wait for a server, or for a lock.
        read_only: only look: nothing is made or brought up to date, and the database refuses every
            change. A file on a read-only disk is read so, and one of another user.

    Raises:
        FileNotFoundError: there is no store, and none shall be made.
        Unreachable: it does not answer.
        ValueError: it is of a newer version, or the URL of another kind.

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
        patience: float = 5.0,
        read_only: bool = False,
    ) -> None:
        self.url = resolve_store_url(store)
        create = create and not read_only
        self.connection: Connection = connect(
            self.url, create=create, patience=patience, read_only=read_only
        )
        try:
            if read_only:
                version = table_versions.version(self.connection, there=True)
                table_versions.check_known(version, self.connection.where, to_read=True)
            else:
                table_versions.migrate(self.connection, create=create)
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
        """Put a run on record, or take it that a known one goes on.

        Args:
            run: its name.
            directory: absolute path, where its commits are.
            host: that it runs on.
            pid: of its process.
            time: when, unix seconds.
            config: what JSON knows.
            environment: versions, devices and the like.
        """
        values = (
            *(run, directory, host, time),
            *(_json(config), _json(dict(environment)), "running", "", pid, None, 0, 0, time, None),
        )
        again = ("directory", "host", "config", "environment", "state", "error", "pid", "beat")
        self.connection.execute(
            f"INSERT INTO runs ({', '.join(RunRow._fields)}) VALUES ({_marks(values)}) "
            "ON CONFLICT (name) DO UPDATE SET "
            + ", ".join(f"{column} = excluded.{column}" for column in (*again, "pause")),
            values,
        )

    def heartbeat(
        self, run: str, *, time: float, epoch: int, step: int, epochs: int | None = None
    ) -> None:
        """Note a sign of life, and how far the run is."""
        self.connection.execute(
            "UPDATE runs SET pause = CASE WHEN ? > beat THEN ? - beat ELSE pause END, "
            "beat = ?, epoch = ?, step = ?, epochs = ? WHERE name = ?",
            (time, time, time, epoch, step, epochs, run),
        )

    def end(self, run: str, state: str, *, time: float, error: str = "") -> None:
        """Note how a run ended: `finished`, `interrupted` or `failed`, and of what."""
        self.connection.execute(
            "UPDATE runs SET state = ?, error = ?, beat = ? WHERE name = ?",
            (state, error, time, run),
        )

    def write_records(self, run: str, epoch: int, step: int, values: Values) -> None:
        """Write values of metrics, numbers or texts, in the place of those of this epoch and step.

        Args:
            run: its name.
            epoch: that they are of.
            step: that they are of.
            values: by name; None is a number that is none.
        """
        self.write_many([(run, epoch, step, values)])

    def write_many(self, records: Iterable[tuple[str, int, int, Values]]) -> None:
        """Write what several `write_records` of (run, epoch, step, values) would, in less time."""
        self.connection.many(
            "INSERT INTO records (run, name, epoch, step, value, text) VALUES (?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (run, name, epoch, step) DO UPDATE SET "
            "value = excluded.value, text = excluded.text",
            (
                (run, shorten_name(name), epoch, step, None, value)
                if isinstance(value, str)
                else (run, shorten_name(name), epoch, step, _kept(value), None)
                for run, epoch, step, values in records
                for name, value in values.items()
            ),
        )

    def rewind(self, run: str, epoch: int, step: int) -> None:
        """Take it that a run goes on from here: what is beyond will be written anew.

        At epoch 0 it begins afresh, and nothing of an earlier one is left.
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

    def write_commit(self, run: str, commit: CheckpointRow) -> None:
        """Note a checkpoint that is complete."""
        columns = commit._asdict() | {"scores": _json(commit.scores)}
        values = (run, *columns.values())
        self.connection.execute(
            f"INSERT INTO commits (run, {', '.join(CheckpointRow._fields)}, present) "
            f"VALUES ({_marks(values)}, 1) ON CONFLICT (run, epoch) DO UPDATE SET present = 1, "
            + ", ".join(f"{column} = excluded.{column}" for column in CheckpointRow._fields[1:]),
            values,
        )

    def remove_commits(self, run: str, epochs: Iterable[int]) -> None:
        """Note that checkpoints are gone; what was measured of them stays."""
        self.connection.many(
            "UPDATE commits SET present = 0 WHERE run = ? AND epoch = ?",
            [(run, epoch) for epoch in epochs],
        )

    def write_artifact(self, run: str, artifact: Artifact) -> None:
        """Note a file that a run left.

        Args:
            run: its name.
            artifact: with a path relative to the run's directory, or absolute.
        """
        values = (run, *artifact)
        self.connection.execute(
            f"INSERT INTO artifacts (run, {', '.join(Artifact._fields)}) VALUES ({_marks(values)}) "
            "ON CONFLICT (run, path) DO UPDATE SET "
            + ", ".join(f"{column} = excluded.{column}" for column in Artifact._fields[1:]),
            values,
        )

    def forget_artifacts(self, run: str, directory: str) -> None:
        """Forget the files of a run's directory, on this machine, that are not there any more."""
        if not os.path.isdir(directory):  # it was moved since: they are elsewhere
            return
        rows = self.connection.execute("SELECT path FROM artifacts WHERE run = ?", (run,))
        self.connection.many(
            "DELETE FROM artifacts WHERE run = ? AND path = ?",
            [
                (run, path)
                for (path,) in rows
                if not os.path.isabs(path) and not os.path.lexists(os.path.join(directory, path))
            ],
        )

    def runs(self) -> list[RunRow]:
        """Give all runs, the newest first."""
        rows = self.connection.execute(
            f"SELECT {', '.join(RunRow._fields)} FROM runs ORDER BY created DESC, name"
        )
        return [RunRow.read(row) for row in rows]

    def run(self, name: str) -> RunRow:
        """Give one run.

        Raises:
            KeyError: there is none of this name; those that there are, are named.
        """
        for row in self.runs():
            if row.name == name:
                return row
        known = suggest_and_list(name, [row.name for row in self.runs()])
        raise KeyError(f"no run {name!r} in {self.connection.where}{known}")

    def read_progress(self, row: RunRow) -> RunRow:
        """Give a run's row with the newest epoch and step that are known of it.

        Signs of life tell of them, and records; a run may give either alone.
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
        """Give what was measured, in the order of epochs and steps.

        Args:
            run: its name.
            names: of the metrics; all where None.
            since: the first epoch.
        """
        if names is not None and not names:
            return []
        chosen = "" if names is None else f" AND name IN ({_marks(names)})"
        rows = self.connection.execute(
            "SELECT name, epoch, step, value, text FROM records WHERE run = ? AND epoch >= ?"
            f"{chosen} ORDER BY epoch, step, name",
            (run, since, *(shorten_name(name) for name in names or ())),
        )
        return [Record.read(row) for row in rows]

    def latest(self, run: str) -> dict[str, Record]:
        """Give the last value of each metric, by name."""
        rows = self.connection.execute(
            "SELECT name, epoch, step, value, text FROM (SELECT name, epoch, step, value, text, "
            "ROW_NUMBER() OVER (PARTITION BY name ORDER BY epoch DESC, step DESC) AS place "
            "FROM records WHERE run = ?) AS placed WHERE place = 1 ORDER BY name",
            (run,),
        )
        return {record.name: record for record in map(Record.read, rows)}

    def commits(self, run: str, *, present: bool = False) -> list[CheckpointRow]:
        """Give the checkpoints by epoch; with `present` those alone that are still there."""
        rows = self.connection.execute(
            f"SELECT {', '.join(CheckpointRow._fields)} FROM commits WHERE run = ? AND present >= "
            "? "
            "ORDER BY epoch",
            (run, int(present)),
        )
        return [CheckpointRow.read(row) for row in rows]

    def artifacts(self, run: str) -> list[Artifact]:
        """Give the files that a run left, by epoch and path, where its directory now is."""
        rows = self.connection.execute(
            f"SELECT {', '.join(Artifact._fields)}, (SELECT directory FROM runs WHERE name = run) "
            "FROM artifacts WHERE run = ? ORDER BY epoch, path",
            (run,),
        )
        return [
            Artifact(os.path.join(directory or "", path), *rest) for path, *rest, directory in rows
        ]

    def remove(self, run: str) -> None:
        """Forget a run; its directory stays."""
        with self.connection.transaction():
            for table in ("records", "commits", "requests", "results", "artifacts"):
                self.connection.execute(f"DELETE FROM {table} WHERE run = ?", (run,))
            self.connection.execute("DELETE FROM runs WHERE name = ?", (run,))

    def close(self) -> None:
        """End the connection; it cannot be used again."""
        self.connection.close()

    def __repr__(self) -> str:
        return f"Store({redact_text(self.url)!r})"

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _marks(values: Sequence[Any]) -> str:
    return ", ".join("?" * len(values))


def _kept(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def _json(value: Any) -> str:
    return json.dumps(value)
