"""The rows of a store, field by field."""

from __future__ import annotations

import json
import math
import os
import socket
from collections.abc import Callable
from typing import Any, NamedTuple

from trainer.host.amounts import format_bytes, format_time
from trainer.host.redaction import redact_settings, redact_text
from trainer.host.rendering.html_tables import render_facts
from trainer.host.rendering.sparklines import format_number

MIN_STALL_SECONDS = 60.0
"""Seconds without a heartbeat after which a run counts as stalled, at the least."""

STALL_PAUSES = 5
"""How many of its usual pauses may pass without a heartbeat."""

FIRST_PAUSE_SECONDS = 900.0
"""Seconds until the second heartbeat is due, since compilation comes before the first epoch."""


class RunRow(NamedTuple):
    """A recorded run."""

    name: str
    directory: str
    """Absolute path of the run's directory, which holds its checkpoints."""
    host: str
    created: float
    """Unix seconds."""
    config: Any
    """JSON data; None if the run has no configuration."""
    environment: dict[str, str]
    """Versions, devices, git revision, system."""
    state: str
    """`running`, `finished`, `interrupted` or `failed`; `status` finds out whether it stalled."""
    error: str
    """Why it failed, else empty."""
    pid: int
    epochs: int | None
    """How many it is to complete, if that is known."""
    epoch: int
    """As of its last heartbeat; `Store.read_progress` reads its records, too."""
    step: int
    beat: float
    """Time of its last heartbeat, unix seconds."""
    pause: float | None
    """Seconds between its last two heartbeats; None before there are two."""

    @classmethod
    def read(cls, row: tuple[Any, ...]) -> RunRow:
        """Read a row of the database; an older version may have stored passwords in it."""
        run = cls._make(row)
        environment = _parse_dict(run.environment)
        return run._replace(
            config=_parse_json(run.config, redact_settings),
            environment={name: redact_text(str(value)) for name, value in environment.items()},
            error=redact_text(str(run.error)),
        )

    def _repr_html_(self) -> str:
        total = "" if self.epochs is None else f" of {self.epochs:,}"
        facts = {
            "state": self.state,
            "error": self.error,
            "epoch": f"{self.epoch:,}{total}",
            "step": f"{self.step:,}",
            "created": format_time(self.created),
            "last heartbeat": format_time(self.beat),
            "host": self.host,
            "directory": self.directory,
        }
        return render_facts(facts, caption=f"Run {self.name}")

    def status(self, now: float) -> str:
        """Return the state, or `stalled` for a run that should be running and sends no heartbeat.

        It has stalled if its process has ended, which can be seen on its own machine, or if it was
        silent for five of its usual pauses, and at least a minute. `now` is by the store's clock.
        """
        if self.state != "running":
            return self.state
        if self.host == socket.gethostname() and not _is_alive(self.pid):
            return "stalled"
        limit = FIRST_PAUSE_SECONDS
        if self.pause is not None:
            limit = max(MIN_STALL_SECONDS, STALL_PAUSES * self.pause)
        return "stalled" if now - self.beat > limit else "running"


class Record(NamedTuple):
    """One value of one metric."""

    name: str
    epoch: int
    step: int
    value: float | str

    @classmethod
    def read(cls, row: tuple[Any, ...]) -> Record:
        """Read a row of the database: (name, epoch, step, value, text)."""
        name, epoch, step, value, text = row
        if text is None:
            return cls(name, epoch, step, math.nan if value is None else value)
        return cls(name, epoch, step, text)


class CheckpointRow(NamedTuple):
    """A recorded checkpoint."""

    epoch: int
    path: str
    bytes: int
    scores: dict[str, float]
    """The metrics of the event at which it was saved."""
    checksum: str
    """Of its manifest: another checkpoint of this epoch has another one."""
    written: str
    """When, ISO 8601 in UTC."""

    def _repr_html_(self) -> str:
        facts = {
            "bytes": format_bytes(self.bytes),
            "written": self.written,
            "path": self.path,
            **{name: format_number(value) for name, value in self.scores.items()},
        }
        return render_facts(facts, caption=f"Checkpoint of epoch {self.epoch:,}")

    @classmethod
    def read(cls, row: tuple[Any, ...]) -> CheckpointRow:
        """Read a row of the database."""
        checkpoint = cls._make(row)
        scores = _parse_dict(checkpoint.scores)
        return checkpoint._replace(
            scores={name: s for name, s in scores.items() if isinstance(s, int | float)}
        )


class Artifact(NamedTuple):
    """A file that a run wrote."""

    path: str
    """Absolute when read from a store; stored relative to the run's directory if it lies there."""
    kind: str
    """`replay`, `plot`, `report`, `trace`."""
    epoch: int
    step: int
    bytes: int


class Request(NamedTuple):
    """A request to evaluate a checkpoint with a suite, and its outcome."""

    run: str
    epoch: int
    suite: str
    checksum: str
    """Of the checkpoint's manifest."""
    state: str
    """`open`, `claimed`, `done` or `failed`."""
    asked: float
    """Unix seconds."""
    tries: int
    worker: str
    """The worker that has or had it."""
    lease: float
    """Until when it belongs to the worker, unix seconds."""
    finished: float | None
    error: str
    """Of the last try that failed."""


def _parse_json(text: Any, clean: Callable[[Any], Any] = lambda found: found) -> Any:
    """Parse JSON; return None for an invalid row, so that the other rows can still be read."""
    try:
        return clean(json.loads(text))
    except (ValueError, TypeError, RecursionError):
        return None


def _parse_dict(text: Any) -> dict[str, Any]:
    found = _parse_json(text)
    return found if isinstance(found, dict) else {}


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # or a number that no process has
        return False
    except OSError:
        return True  # another user's process
    return True
