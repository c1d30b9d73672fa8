"""Contestants in processes: started, asked and ended, with a limit of time."""

import contextlib
import json
import os
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SCRIPT = Path(__file__).parent / "_contestant.py"
LIMIT = 900.0
"""Seconds of one answer, after which a contestant has failed."""


class ContestantError(Exception):
    """A contestant ended, or said nothing for too long; its last line says more."""


class Contestant:
    """A process that has trained one epoch.

    Args:
        arguments: of the process: the race, the place of the function, perhaps `quick`.
        cache: a folder for what JAX and PyTorch compile; an empty one makes a first start.
        environment: variables besides those of this process.
    """

    def __init__(self, arguments, cache, environment):
        self.folder = Path(tempfile.mkdtemp())
        caches = {
            "JAX_COMPILATION_CACHE_DIR": f"{cache}/jax",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "TORCHINDUCTOR_CACHE_DIR": f"{cache}/torch",
        }
        began = time.perf_counter()
        with (self.folder / "printed.txt").open("w") as printed:
            self.process = subprocess.Popen(
                [sys.executable, SCRIPT, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=printed,
                text=True,
                cwd=self.folder,
                env={**os.environ, **caches, **environment},
            )
        try:
            self.first_answer = self._read()
        except BaseException:
            self.close()
            raise
        self.start = time.perf_counter() - began
        """Seconds from the start of the process to the end of its first epoch."""

    def train(self, epochs):
        """Train so many epochs, and return the answer: `seconds`, and what there is to report."""
        with contextlib.suppress(BrokenPipeError):  # its output says why
            self.process.stdin.write(f"{epochs}\n")
            self.process.stdin.flush()
        return self._read()

    def _read(self):
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            if not selector.select(LIMIT):
                raise ContestantError(f"no answer within {LIMIT:g} s")
        if not (line := self.process.stdout.readline()):
            lines = (self.folder / "printed.txt").read_text().strip().splitlines()
            raise ContestantError(lines[-1] if lines else "it printed nothing")
        return json.loads(line)

    def close(self):
        """End the process."""
        self.process.kill()
        self.process.communicate()
        shutil.rmtree(self.folder, ignore_errors=True)
