"""Notices: what every user must know reaches standard error, whether logging was set up or not."""

from __future__ import annotations

import logging
import sys

import jax

log = logging.getLogger("entracte")


def show_notices() -> None:
    """Show what the logger `entracte` says on standard error, unless someone else does.

    Called when `trainer` is imported; calling it again changes nothing. Its levels: WARNING is what
    differs from what was asked, INFO a line that everyone should see (resuming, nothing to train,
    where checkpoints are), DEBUG the rest (compile times, executors). To be told less, or more:

        logging.getLogger("entracte").setLevel("WARNING")

    Where the user set up logging, with `logging.basicConfig(format=...)` or handlers of their own,
    records go there, and there alone.

    >>> show_notices()
    >>> log.level == logging.INFO, sum(isinstance(one, Notices) for one in log.handlers)
    (True, 1)
    """
    if log.level == logging.NOTSET:
        log.setLevel(logging.INFO)
    if not any(isinstance(handler, Notices) for handler in log.handlers):
        log.addHandler(Notices())


class Notices(logging.Handler):
    """Prints a line for each record, on what `sys.stderr` is then: a live bar stays whole."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record that nobody else shows; on several processes the main one's notices."""
        try:
            process = _process()
            if _shown_elsewhere() or (process and record.levelno < logging.WARNING):
                return
            where = f"entracte, process {process}" if process else "entracte"
            kind = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
            print(f"{where}: {kind}{self.format(record)}", file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)


def _process() -> int:
    """Number this process, without starting JAX's backends, which may still be configured."""
    return jax.process_index() if jax.distributed.is_initialized() else 0


def _shown_elsewhere() -> bool:
    """Say whether a handler that someone chose shows our records; keep them from one nobody did.

    absl, which Orbax brings, calls `logging.basicConfig()` at its first record. What that leaves at
    the root knows neither our format nor a live bar.
    """
    chosen = any(not isinstance(handler, Notices) for handler in log.handlers)
    for handler in logging.root.handlers if log.propagate else ():
        if not _is_default(handler):
            chosen = True
        elif _not_ours not in handler.filters:
            handler.addFilter(_not_ours)
    return chosen


def _is_default(handler: logging.Handler) -> bool:
    """Say whether a handler is what `logging.basicConfig()` leaves, to which nothing was said."""
    return (
        type(handler) is logging.StreamHandler
        and getattr(handler.formatter, "_fmt", None) == logging.BASIC_FORMAT
        and (handler.level, logging.root.level) == (logging.NOTSET, logging.WARNING)
    )


def _not_ours(record: logging.LogRecord) -> bool:
    """Let pass what is not ours, and what is where the root was set up since."""
    return record.name != log.name or logging.root.level != logging.WARNING
