"""Several processes of one run on loopback, most often two, for tests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

LIMIT = 90
"""Time limit in seconds for two; a process without its peer ends after 5 to 15."""


class Pair:
    """The processes of a run, one or several, always ended.

    The child's arguments are the run directory, its rank, their number, a port, and a pause. XLA
    compiles quickly in them: importing and compiling take longer than these runs.
    """

    def __init__(self, child, run, *, count=2, pause=0.0):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.run = Path(run)
        self.began = time.monotonic()
        self.processes = []
        environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
        for rank in range(count):
            command = [sys.executable, "-c", child, *map(str, (run, rank, count, port, pause))]
            with (self.run / f"stderr.{rank}").open("w") as errors:
                process = subprocess.Popen(
                    command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
                )
            self.processes.append(process)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for process in self.processes:
            process.kill()
            process.wait(10)
            process.stdout.close()

    def reach(self, epoch):
        """Wait until all processes have run the hooks of an epoch."""
        for process in self.processes:
            for line in process.stdout:
                if line == f"epoch {epoch}\n":
                    break
            else:
                raise AssertionError(f"it ended before epoch {epoch}")

    def ended(self):
        """Wait for all; return (status, last line) of each."""
        limit = LIMIT * max(1, len(self.processes) / 2)
        left = self.began + limit - time.monotonic()
        said = [process.communicate(timeout=left)[0] for process in self.processes]
        last = [(text.splitlines() or ["nothing"])[-1] for text in said]
        return [(p.returncode, line) for p, line in zip(self.processes, last, strict=True)]

    def read_errors(self):
        """Return what each process wrote to standard error, once they have ended."""
        return [path.read_text() for path in sorted(self.run.glob("stderr.*"))]
