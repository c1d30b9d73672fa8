"""What tells a process from all others: whether the one that has a lease is still there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def identify_process(pid: str = "self") -> dict[str, str] | None:
    """Return what tells a process of this machine from all others, ever; None if it is gone.

    Args:
        pid: as a text; this process if not given.

    Returns:
        The machine's start, the namespace of process numbers, the number and when it began; also
        None where the system does not tell.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if fields[0] in "ZX":  # it ended, and its parent did not ask how
            return None
        return {
            "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            "namespace": os.readlink("/proc/self/ns/pid"),
            "pid": str(os.getpid()) if pid == "self" else pid,
            "began": fields[19],
        }
    except OSError:
        return None


def is_gone(identity: Any) -> bool:
    """Return whether a process of this machine is gone.

    Args:
        identity: what `identify_process` returned in that process, or anything else.

    >>> (is_gone(identify_process()), is_gone(None))
    (False, False)
    """
    ours = identify_process()
    if ours is None or not isinstance(identity, dict):
        return False
    if any(identity.get(name) != ours[name] for name in ("boot", "namespace")):
        return False
    pid = identity.get("pid")
    return isinstance(pid, str) and pid.isdigit() and identify_process(pid) != identity
