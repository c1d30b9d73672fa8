"""The environment of a run: devices, versions, the machine, and the revision of its code."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import jax

from trainer.host.redaction import redact_command

LIBRARIES = ("entracte", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
"""Distributions whose versions are reported, if they are installed."""

GIT_SECONDS = 5
"""Seconds that git may take to report the revision."""


def describe_environment() -> dict[str, str]:
    """Describe the environment of a run.

    Returns:
        `devices`, `processes`, `host`, `system`, `python`, the libraries' versions, `command`
        without passwords, and `revision`: of the git repository that holds the running script, with
        `changed` if files differ from it; without git it is missing.

    >>> describe_environment()["python"]
    '3...'
    """
    found = {
        "devices": f"{describe_devices()} ({jax.default_backend()})",
        "processes": str(jax.process_count()),
        "host": f"{socket.gethostname()}, {os.cpu_count()} CPUs",
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    for library in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[library] = metadata.version(library)
    found["command"] = " ".join(redact_command(sys.argv))
    if revision := _revision():
        found["revision"] = revision
    return found


def describe_devices(devices: Sequence[jax.Device] | None = None) -> str:
    """Count devices by kind, `1 cpu`; None: those of all processes."""
    kinds = Counter(device.device_kind for device in devices or jax.devices())
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))


def describe_process() -> str:
    """Describe this process: its number, its machine, and the time now.

    >>> describe_process()
    'pid ... on ... since ...'
    """
    now = datetime.now(UTC).isoformat(" ", "seconds")
    return f"pid {os.getpid()} on {socket.gethostname()} since {now}"


def _revision() -> str | None:
    folder, script = Path("."), Path(sys.argv[0])
    if script.is_file():
        script = script.resolve()
        # For a notebook's launcher or an installed command it would be another repository.
        installed = script.is_relative_to(Path(sys.prefix).resolve())
        folder = folder if installed or "site-packages" in script.parts else script.parent

    def git(*arguments: str) -> str:
        ran = subprocess.run(
            ["git", "-C", os.fspath(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=GIT_SECONDS,
            check=True,
        )
        return ran.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + (" and changed files" if changed else "")
    except (OSError, subprocess.SubprocessError):  # no git, or no repository
        return None
