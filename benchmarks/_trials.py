"""Trainers in processes: started, given a trial to do in a child, and ended."""

import json
import os
import selectors
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from _starting import ContestantError

SCRIPT = Path(__file__).parent / "_trial_process.py"
LIMIT = 600.0
"""Seconds of one trial, after which its trainer has failed."""


class Done(NamedTuple):
    """What a child left."""

    status: int
    """0, 1 where it raised, or minus the signal that killed it."""
    answer: dict
    printed: str


class TrainerProcess:
    """A process that has imported a trainer, and forks a child for each trial.

    Args:
        module: of `guarantee_trials`.
        cache: a folder for what JAX compiles.
    """

    def __init__(self, module, cache):
        settings = {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        self.process = subprocess.Popen(
            [sys.executable, SCRIPT, module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **settings},
        )

    def do(self, task, folder, **arguments):
        """Do a task of `_trial_process` in a folder, in a child; a trial that failed has a status.

        Raises:
            ContestantError: the trainer cannot be imported, or the child hangs.
        """
        folder.mkdir(parents=True, exist_ok=True)
        answer = folder / "answer.json"
        answer.unlink(missing_ok=True)
        (folder / "printed.txt").write_text("")
        try:
            self.process.stdin.write(json.dumps([task, str(folder), arguments]) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise ContestantError("its process ended") from None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            if not selector.select(LIMIT):
                raise ContestantError(f"{task}: no answer within {LIMIT:g} s")
        if not (line := self.process.stdout.readline()):
            raise ContestantError(f"{task}: its process ended")
        printed = (folder / "printed.txt").read_text(errors="replace")
        found = json.loads(answer.read_text()) if answer.exists() else {}
        return Done(int(line), found, printed)

    def must(self, task, folder, **arguments):
        """Do a task that has to succeed, and return its answer.

        Raises:
            ContestantError: it failed, with its last line.
        """
        done = self.do(task, folder, **arguments)
        if done.status or "error" in done.answer:
            lines = done.printed.strip().splitlines() or ["it printed nothing"]
            raise ContestantError(f"{task}: {done.answer.get('error', lines[-1])}")
        return done.answer

    def kill(self, folder, **arguments):
        """Train until the process kills itself.

        Raises:
            ContestantError: it ended before.
        """
        done = self.do("train", folder, **arguments)
        if done.status != -9:
            raise ContestantError(f"train: it was not killed: {done.answer}")

    def close(self):
        """End the process."""
        self.process.kill()
        self.process.communicate()


def load_params(folder):
    """Return what a trial left as its final parameters, float32 `[parameters]`."""
    with np.load(folder / "final.npz") as arrays:
        return np.concatenate([arrays[name].ravel() for name in arrays])
