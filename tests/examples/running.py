"""Examples as a user runs them: a process, what it printed, and its end."""

import re
import subprocess
import sys
import time
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def started(name, run, *flags):
    """Start an example in a directory for its run; standard output and error are one text."""
    return subprocess.Popen(
        [sys.executable, EXAMPLES / f"{name}.py", "--run", str(run), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(process, *, limit=240):
    """Wait until it ends well, so many seconds at most, and give what it printed."""
    printed, _ = process.communicate(timeout=limit)
    assert process.returncode == 0, printed
    return printed


def fingerprint(printed):
    """Give the last line, which must be the fingerprint."""
    last = printed.rstrip().splitlines()[-1]
    assert re.fullmatch(r"fingerprint [0-9a-f]{64}", last)
    return last


def killed_after(process, run, epoch):
    """Kill it as soon as this epoch, or a later one, is committed, and give what it printed."""
    commits, saved = run / "checkpoints", []
    for _ in range(6000):
        saved = [int(path.name) for path in commits.glob("*") if path.name.isdigit()]
        if process.poll() is not None or max(saved, default=0) >= epoch:
            break
        time.sleep(0.02)
    process.kill()
    printed, _ = process.communicate(timeout=60)
    assert saved, printed
    return printed
