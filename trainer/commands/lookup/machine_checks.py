"""The checks of `doctor`: one function per subject, each of which yields findings."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

import jax

from trainer.commands.lookup.conditions import COMPARE
from trainer.commands.lookup.stores import open_store, resolve_store
from trainer.commands.terminal.calling import CommandError, parse_local_path
from trainer.host.amounts import format_bytes
from trainer.host.extras import install_command

Verdict = Literal["good", "note", "wrong"]
"""A `note` is no fault."""

LEAST_SQLITE = (3, 35, 0)
"""The first version with RETURNING, which the store uses."""

SCARCE = 2e9
"""Free bytes of memory, or of a disk, below which there is a note."""

CACHE = "jax_compilation_cache_dir"
"""JAX's setting for its compilation cache."""


class Finding(NamedTuple):
    """The result of a check."""

    subject: str
    verdict: Verdict
    found: str
    remedy: str = ""


def versions() -> Iterator[Finding]:
    """Compare the versions of Python and of required libraries with the package's bounds."""
    bounds = metadata.metadata("entracte")["Requires-Python"] or ""
    python = ".".join(map(str, sys.version_info[:3]))
    if is_within_bounds(python, bounds):
        yield Finding("Python", "good", python)
    else:
        yield Finding("Python", "wrong", f"{python} is not {bounds}", f"use a Python {bounds}")
    valid = []
    for requirement in metadata.requires("entracte") or ():
        parts = re.fullmatch(r"([\w.-]+)\s*([^;\[\]]*)", requirement)
        if parts is None:  # of an extra, or only for some machines
            continue
        library, bounds = parts.groups()
        remedy = f'pip install "{library}{bounds}"'
        try:
            version = metadata.version(library)
        except metadata.PackageNotFoundError:
            yield Finding(library, "wrong", "not installed", remedy)
            continue
        if is_within_bounds(version, bounds):
            valid.append(f"{library} {version}")
        else:
            yield Finding(library, "wrong", f"{version} is not {bounds}", remedy)
    yield Finding("libraries", "good", ", ".join(valid))


def devices() -> Iterator[Finding]:
    """Report JAX's devices, and whether it does not use a GPU."""
    kinds = Counter(device.device_kind for device in jax.devices())
    summary = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    reported = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    if limits := [stats["bytes_limit"] for stats in reported if "bytes_limit" in stats]:
        summary += f" with {format_bytes(min(limits))} each"
    summary += f" ({jax.default_backend()}), {os.cpu_count()} CPU cores"
    missed = len([*Path("/dev").glob("nvidia[0-9]*")])
    if missed and jax.default_backend() == "cpu":
        yield Finding(
            "devices",
            "wrong",
            f"{summary}; JAX does not use the {missed} NVIDIA GPUs of this machine",
            'pip install "jax[cuda12]"; also check that JAX_PLATFORMS is not cpu',
        )
    else:
        yield Finding("devices", "good", summary)


def memory() -> Iterator[Finding]:
    """Report how much memory is free."""
    try:
        import psutil
    except ImportError:
        remedy = install_command("monitoring")
        yield Finding("memory", "note", "unknown without psutil", remedy)
        return
    memory = psutil.virtual_memory()
    free = f"{format_bytes(memory.available)} of {format_bytes(memory.total)} free"
    if memory.available < SCARCE:
        yield Finding("memory", "note", free, "end other programs, or use small batches")
    else:
        yield Finding("memory", "good", free)


def cache() -> Iterator[Finding]:
    """Report whether compiled programs are cached, and where."""
    folder = getattr(jax.config, CACHE)
    if not folder:
        remedy = 'trainer.cache_compilations("runs/cache") in scripts, or JAX_COMPILATION_CACHE_DIR'
        yield Finding("compilation cache", "note", "off: each start compiles again", remedy)
    elif "://" in folder:
        yield Finding("compilation cache", "good", folder)
    else:
        files = [file.stat().st_size for file in Path(folder).glob("*") if file.is_file()]
        content = f"{folder}: {len(files):,} files, {format_bytes(sum(files))}"
        yield _check_writable("compilation cache", Path(folder), content)


def sqlite() -> Iterator[Finding]:
    """Check whether SQLite has what the store needs."""
    if sqlite3.sqlite_version_info >= LEAST_SQLITE:
        yield Finding("SQLite", "good", sqlite3.sqlite_version)
    else:
        remedy = "use a build of Python with a newer SQLite, or a store on PostgreSQL"
        problem = f"{sqlite3.sqlite_version} is too old for the store, which needs 3.35"
        yield Finding("SQLite", "wrong", problem, remedy)


def store(name: str | None) -> Iterator[Finding]:
    """Check whether the store responds."""
    try:
        with open_store(name) as opened:
            rows, now = opened.runs(), opened.connection.now()
            where = opened.connection.label
    except CommandError as refusal:
        if name is None and isinstance(refusal.__cause__, FileNotFoundError):
            remedy = "the first recorded run creates it"
            yield Finding("store", "note", f"none in {resolve_store(name)}", remedy)
        else:
            yield Finding("store", "wrong", str(refusal), "name another, or check its server")
        return
    stalled = [row.name for row in rows if row.status(now) == "stalled"]
    count = f"{len(rows)} {'run' if len(rows) == 1 else 'runs'} in {where}"
    if stalled:
        problem = f"{count}; stalled: {', '.join(stalled)}"
        yield Finding("store", "note", problem, "start them again")
    else:
        yield Finding("store", "good", count)


def disk(name: str | None) -> Iterator[Finding]:
    """Check whether there is room for checkpoints, and whether they can be written."""
    place = resolve_store(name)
    folder = Path.cwd() if "://" in place else parse_local_path(place, "--store")
    while not folder.is_dir():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    room = f"{format_bytes(free)} free at {folder}"
    if free < SCARCE:
        yield Finding("disk", "note", room, "make room, or keep fewer checkpoints")
    else:
        yield _check_writable("disk", folder, room)


def is_within_bounds(version: str, bounds: str) -> bool:
    """Return whether a version is within bounds; only its numbers are compared.

    >>> (is_within_bounds("0.12.0.1", ">=0.10.2,<0.13"), is_within_bounds("0.13", "<0.13.0"),
    ...  is_within_bounds("3", ""))
    (True, False, True)
    """
    for bound in filter(None, bounds.split(",")):
        sign, limit = re.fullmatch(r"\s*([<>=!]+)\s*(.*)", bound).groups()  # type: ignore[union-attr]
        if not COMPARE[sign](_parse_numbers(version), _parse_numbers(limit)):
            return False
    return True


def _parse_numbers(version: str) -> list[int]:
    """Return the numbers at the start of a version, without meaningless zeros at their end."""
    begin = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(part) for part in begin[0].split(".")] if begin else []
    while numbers and not numbers[-1]:
        numbers.pop()
    return numbers


def _check_writable(subject: str, folder: Path, description: str) -> Finding:
    if os.access(folder, os.W_OK):
        return Finding(subject, "good", description)
    return Finding(subject, "wrong", f"{description}; not writable", f"make {folder} writable")
