"""Notices: messages that every user must see, on standard error without any logging setup."""

from __future__ import annotations

import logging
import sys

import jax

log = logging.getLogger("entracte")


def show_notices() -> None:
    """Print the messages of the logger `entracte` on standard error, unless another handler does.

    Called when `trainer` is imported; a second call changes nothing. Its levels: WARNING for what
    differs from what was requested, INFO for lines that everyone should see (resuming, nothing to
    train, where checkpoints are), DEBUG for the rest (compile times, executors). To see less or
    more:

        logging.getLogger("entracte").setLevel("WARNING")

    If the user set up logging, with `logging.basicConfig(format=...)` or their own handlers,
    records go there alone.

    >>> show_notices()
    >>> log.level == logging.INFO, sum(isinstance(one, NoticeHandler) for one in log.handlers)
    (True, 1)
    """
    if log.level == logging.NOTSET:
        log.setLevel(logging.INFO)
    if not any(isinstance(handler, NoticeHandler) for handler in log.handlers):
        log.addHandler(NoticeHandler())


class NoticeHandler(logging.Handler):
    """Prints a line for each record on the current `sys.stderr`: a live bar stays intact."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record that no other handler shows; INFO on the main process alone."""
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
    """Return this process's index without starting JAX's backends before they are configured."""
    return jax.process_index() if jax.distributed.is_initialized() else 0


def _shown_elsewhere() -> bool:
    """Return whether a handler that the user chose shows our records; hide them from others.

    absl, a dependency of Orbax, calls `logging.basicConfig()` at its first record. The handler that
    this adds to the root has neither our format nor support for a live bar.
    """
    others = [handler for handler in log.handlers if not isinstance(handler, NoticeHandler)]
    for handler in logging.root.handlers if log.propagate else ():
        if _is_default(handler):
            handler.addFilter(_not_ours)  # once, however often
        else:
            others.append(handler)
    return bool(others)


def _is_default(handler: logging.Handler) -> bool:
    """Return whether a handler is the one of `logging.basicConfig()` without arguments."""
    return (
        type(handler) is logging.StreamHandler
        and getattr(handler.formatter, "_fmt", None) == logging.BASIC_FORMAT
        and (handler.level, logging.root.level) == (logging.NOTSET, logging.WARNING)
    )


def _not_ours(record: logging.LogRecord) -> bool:
    """Pass records that are not ours, and all once the root was set up."""
    return record.name != log.name or logging.root.level != logging.WARNING
