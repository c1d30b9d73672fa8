"""The error that files of a checkpoint are damaged."""

from __future__ import annotations

from trainer.host.escaping import escape_lines


class DamagedCheckpoint(RuntimeError):  # noqa: N818 - what is the case, as its message says
    """The files of a checkpoint are not as they were written. Text from them is escaped."""

    def __init__(self, message: object) -> None:
        super().__init__(escape_lines(message))
