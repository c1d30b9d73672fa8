"""Scripts as a user runs them: a process, its output, and its exit status.

Importing the libraries takes longer than most of these runs, so the processes are forked from
one that has imported them and has not initialised JAX.
"""

import os
import re
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import _crashing
import jax

EXAMPLES = Path(__file__).parents[2] / "examples"

QUICKLY = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
"""Environment in which XLA compiles quickly: its best code costs a short run more than it saves."""


class Script:
    """The process of a script, with the methods of `subprocess.Popen`; it compiles quickly."""

    def __init__(self, file, *arguments):
        handle, self._printed = tempfile.mkstemp(suffix=".txt")
        os.close(handle)
        settings = {
            "jax_disable_most_optimizations": True,
            "jax_compilation_cache_dir": os.environ.get("JAX_COMPILATION_CACHE_DIR"),
            "jax_persistent_cache_min_compile_time_secs": 0,
        }
        self._process = _crashing.nursery().Process(
            target=_play, args=(str(file), [*map(str, arguments)], self._printed, settings)
        )
        self._process.start()

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self._process.exitcode

    def kill(self):
        self._process.kill()

    def send_signal(self, number):
        os.kill(self._process.pid, number)

    def communicate(self, timeout):
        """Wait at most `timeout` seconds for its end; return its output as one text."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            raise subprocess.TimeoutExpired(self._process.name, timeout)
        return Path(self._printed).read_text(), ""


def _play(file, arguments, printed, settings):
    """Run the script in this process, with its output in a file."""
    with open(printed, "w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.environ.update(QUICKLY, PYTHONPATH=str(EXAMPLES.parent))  # for its child processes
    if folder := settings["jax_compilation_cache_dir"]:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    for name, value in settings.items():
        jax.config.update(name, value)
    sys.argv[:] = [file, *arguments]
    sys.path.insert(0, str(Path(file).parent))
    runpy.run_path(file, run_name="__main__")


def started(name, run, *flags):
    """Start an example with a directory for its run; its output and errors are one text."""
    return Script(EXAMPLES / f"{name}.py", "--run", run, *flags)


def finished(process, *, limit=240):
    """Wait at most `limit` seconds for a success; return its output."""
    printed, _ = process.communicate(timeout=limit)
    assert process.returncode == 0, printed
    return printed


def fingerprint(printed):
    """Return the last line, which must be the fingerprint."""
    last = printed.rstrip().splitlines()[-1]
    assert re.fullmatch(r"fingerprint [0-9a-f]{64}", last)
    return last


def killed_after(process, run, epoch):
    """Kill it as soon as this epoch, or a later one, is saved; return its output."""
    saved = 0
    for _ in range(6000):
        saved = _crashing.newest(run)
        if process.poll() is not None or saved >= epoch:
            break
        time.sleep(0.02)
    process.kill()
    printed, _ = process.communicate(timeout=60)
    assert saved, printed
    return printed
