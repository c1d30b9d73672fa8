"""The rows of a store: what is on record, field by field."""

from __future__ import annotations

import json
import math
import os
import socket
from collections.abc import Callable
from typing import Any, NamedTuple

from trainer.host.redaction import redact_settings, redact_text

QUIET = 60.0
"""Seconds without a sign of life after which a run is said to have stalled, at the least."""

PAUSES = 5
"""How many of its usual pauses may go by without a sign."""

FIRST = 900.0
"""Seconds until the second sign, for compilation comes before the first epoch."""


class RunRow(NamedTuple):
    """A run, as the store knows it."""

    name: str
    directory: str
    """Absolute path, where its commits are."""
    host: str
    created: float
    """Unix seconds."""
    config: Any
    """What JSON knows; None where the run gave none."""
    environment: dict[str, str]
    """Versions, devices, git revision, system."""
    state: str
    """`running`, `finished`, `interrupted` or `failed`; whether it stalled, `status` says."""
    error: str
    """What it failed of, else empty."""
    pid: int
    epochs: int | None
    """How many it shall complete, where that is known."""
    epoch: int
    """By its last sign of life; `Store.reached` looks at its records, too."""
    step: int
    beat: float
    """When it last gave a sign of life, unix seconds."""
    pause: float | None
    """Seconds between its last two signs; None before there are two."""

    @classmethod
    def read(cls, row: tuple[Any, ...]) -> RunRow:
        """Make one of what a database gave, which an older version may have given passwords."""
        made = dict(zip(cls._fields, row, strict=True))
        environment = _mapping(made.pop("environment"))
        made |= {"config": _plain(made["config"], redact_settings)}
        made |= {"error": redact_text(str(made["error"]))}
        told = {name: redact_text(str(value)) for name, value in environment.items()}
        return cls(**made, environment=told)

    def status(self, now: float) -> str:
        """Give the state, or `stalled` where a run that should be running gives no sign.

        It has stalled if its process is gone, which can be seen on its own machine, or if it was
        silent for five of its usual pauses, and no less than a minute.

        Args:
            now: unix seconds, by the store's clock.
        """
        if self.state != "running":
            return self.state
        if self.host == socket.gethostname() and not _lives(self.pid):
            return "stalled"
        limit = FIRST if self.pause is None else max(QUIET, PAUSES * self.pause)
        return "stalled" if now - self.beat > limit else "running"


class Record(NamedTuple):
    """One value of one metric."""

    name: str
    epoch: int
    step: int
    value: float | str

    @classmethod
    def read(cls, row: tuple[Any, ...]) -> Record:
        """Make one of what a database gave: (name, epoch, step, value, text)."""
        name, epoch, step, value, text = row
        if text is None:
            return cls(name, epoch, step, math.nan if value is None else value)
        return cls(name, epoch, step, text)


class CheckpointRow(NamedTuple):
    """A checkpoint."""

    epoch: int
    path: str
    bytes: int
    scores: dict[str, float]
    """The metrics of the event that was committed."""
    checksum: str
    """Of its manifest: another commit of this epoch has another."""
    written: str
    """When, ISO 8601 in UTC."""

    @classmethod
    def read(cls, row: tuple[Any, ...]) -> CheckpointRow:
        """Make one of what a database gave."""
        made = dict(zip(cls._fields, row, strict=True))
        scores = _mapping(made["scores"])
        return cls(
            **made | {"scores": {n: s for n, s in scores.items() if isinstance(s, int | float)}}
        )


class Artifact(NamedTuple):
    """A file that a run left."""

    path: str
    """Absolute where a store gives it; kept relative to the run's directory if it lies there."""
    kind: str
    """`replay`, `plot`, `report`, `trace`."""
    epoch: int
    step: int
    bytes: int


class Request(NamedTuple):
    """That a checkpoint be evaluated by a suite, and what became of it."""

    run: str
    epoch: int
    suite: str
    checksum: str
    """Of the commit's manifest."""
    state: str
    """`open`, `claimed`, `done` or `failed`."""
    asked: float
    """Unix seconds."""
    tries: int
    worker: str
    """That has or had it."""
    lease: float
    """Until when it is the worker's, unix seconds."""
    finished: float | None
    error: str
    """Of the last try that failed."""


def _plain(text: Any, cleaned: Callable[[Any], Any] = lambda found: found) -> Any:
    """Read what JSON knows; None of an odd row, which hides no other."""
    try:
        return cleaned(json.loads(text))
    except (ValueError, TypeError, RecursionError):
        return None


def _mapping(text: Any) -> dict[str, Any]:
    found = _plain(text)
    return found if isinstance(found, dict) else {}


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # or no process's at all
        return False
    except OSError:
        return True  # another user's
    return True
