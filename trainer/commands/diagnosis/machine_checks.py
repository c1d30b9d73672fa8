"""What `doctor` looks at: one function a subject, each of which gives findings."""

from __future__ import annotations

import operator
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

from trainer.commands.lookup.stores import open_store, resolve_store
from trainer.commands.terminal.calling import CommandError, parse_local_path
from trainer.host.amounts import format_bytes

Verdict = Literal["good", "note", "wrong"]
"""With a `note`, nothing is wrong."""

LEAST_SQLITE = (3, 35, 0)
"""The first that has RETURNING, which the store's statements use."""

SCARCE = 2e9
"""Bytes of memory, or of a disk, below which it is worth a note."""

CACHE = "jax_compilation_cache_dir"
"""JAX's setting."""

SIGNS = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}


class Finding(NamedTuple):
    """What was found of a subject."""

    subject: str
    verdict: Verdict
    found: str
    remedy: str = ""


def versions() -> Iterator[Finding]:
    """Compare the versions of Python and of what is required with the package's bounds."""
    bounds = metadata.metadata("entracte")["Requires-Python"] or ""
    python = ".".join(map(str, sys.version_info[:3]))
    if is_within_bounds(python, bounds):
        yield Finding("Python", "good", python)
    else:
        yield Finding("Python", "wrong", f"{python} is not {bounds}", f"use a Python {bounds}")
    sound = []
    for requirement in metadata.requires("entracte") or ():
        parts = re.fullmatch(r"([\w.-]+)\s*([^;\[\]]*)", requirement)
        if parts is None:  # of an extra, or for some machines alone
            continue
        library, bounds = parts.groups()
        remedy = f'pip install "{library}{bounds}"'
        try:
            version = metadata.version(library)
        except metadata.PackageNotFoundError:
            yield Finding(library, "wrong", "not installed", remedy)
            continue
        if is_within_bounds(version, bounds):
            sound.append(f"{library} {version}")
        else:
            yield Finding(library, "wrong", f"{version} is not {bounds}", remedy)
    yield Finding("libraries", "good", ", ".join(sound))


def devices() -> Iterator[Finding]:
    """Tell what JAX found, and whether it missed a GPU."""
    kinds = Counter(device.device_kind for device in jax.devices())
    told = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    stats = [known for device in jax.local_devices() if (known := device.memory_stats())]
    if limits := [known["bytes_limit"] for known in stats if "bytes_limit" in known]:
        told += f" with {format_bytes(min(limits))} each"
    told += f" ({jax.default_backend()}), {os.cpu_count()} CPU cores"
    missed = len([*Path("/dev").glob("nvidia[0-9]*")])
    if missed and jax.default_backend() == "cpu":
        yield Finding(
            "devices",
            "wrong",
            f"{told}; JAX does not use the {missed} NVIDIA GPUs of this machine",
            'pip install "jax[cuda12]"; see also that JAX_PLATFORMS does not say cpu',
        )
    else:
        yield Finding("devices", "good", told)


def memory() -> Iterator[Finding]:
    """Tell how much memory is free."""
    try:
        import psutil
    except ImportError:
        remedy = 'pip install "entracte[monitoring]"'
        yield Finding("memory", "note", "not known without psutil", remedy)
        return
    found = psutil.virtual_memory()
    told = f"{format_bytes(found.available)} of {format_bytes(found.total)} free"
    if found.available < SCARCE:
        yield Finding("memory", "note", told, "end what else takes memory, or take small batches")
    else:
        yield Finding("memory", "good", told)


def cache() -> Iterator[Finding]:
    """Tell whether compiled programs are kept, and where."""
    folder = getattr(jax.config, CACHE)
    if not folder:
        remedy = 'trainer.cache_compilations("runs/cache") in scripts, or JAX_COMPILATION_CACHE_DIR'
        yield Finding("compilation cache", "note", "off: each start compiles anew", remedy)
    elif "://" in folder:
        yield Finding("compilation cache", "good", folder)
    else:
        files = [file.stat().st_size for file in Path(folder).glob("*") if file.is_file()]
        yield _writable(
            "compilation cache",
            Path(folder),
            f"{folder}: {len(files):,} files, {format_bytes(sum(files))}",
        )


def sqlite() -> Iterator[Finding]:
    """Tell whether SQLite knows what the store asks of it."""
    if sqlite3.sqlite_version_info >= LEAST_SQLITE:
        yield Finding("SQLite", "good", sqlite3.sqlite_version)
    else:
        remedy = "a build of Python with a newer SQLite, or a store on PostgreSQL"
        told = f"{sqlite3.sqlite_version} is too old for the store, which needs 3.35"
        yield Finding("SQLite", "wrong", told, remedy)


def store(name: str | None) -> Iterator[Finding]:
    """Tell whether the store answers."""
    try:
        with open_store(name) as there:
            rows, now = there.runs(), there.connection.now()
            where = there.connection.label
    except CommandError as refusal:
        missing = isinstance(refusal.__cause__, FileNotFoundError)
        if missing and name is None:
            yield Finding(
                "store",
                "note",
                f"none in {resolve_store(name)}",
                "the first run on record makes it",
            )
        else:
            yield Finding("store", "wrong", str(refusal), "name another, or see to its server")
        return
    stalled = [row.name for row in rows if row.status(now) == "stalled"]
    told = f"{len(rows)} {'run' if len(rows) == 1 else 'runs'} in {where}"
    if stalled:
        yield Finding("store", "note", f"{told}; stalled: {', '.join(stalled)}", "start them again")
    else:
        yield Finding("store", "good", told)


def disk(name: str | None) -> Iterator[Finding]:
    """Tell whether there is room for commits, and whether they can be written."""
    place = resolve_store(name)
    folder = Path.cwd() if "://" in place else parse_local_path(place, "--store")
    while not folder.is_dir():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    told = f"{format_bytes(free)} free at {folder}"
    if free < SCARCE:
        yield Finding("disk", "note", told, "make room, or keep fewer commits")
    else:
        yield _writable("disk", folder, told)


def is_within_bounds(version: str, bounds: str) -> bool:
    """Say whether a version is within bounds; of it only the numbers count.

    >>> (is_within_bounds("0.12.0.1", ">=0.10.2,<0.13"), is_within_bounds("0.13", "<0.13.0"),
    ...  is_within_bounds("3", ""))
    (True, False, True)
    """
    for bound in filter(None, bounds.split(",")):
        sign, limit = re.fullmatch(r"\s*([<>=!]+)\s*(.*)", bound).groups()  # type: ignore[union-attr]
        if not SIGNS[sign](_numbers(version), _numbers(limit)):
            return False
    return True


def _numbers(version: str) -> list[int]:
    """Give the numbers that a version begins with, without zeros at the end, that mean nothing."""
    begin = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(part) for part in begin[0].split(".")] if begin else []
    while numbers and not numbers[-1]:
        numbers.pop()
    return numbers


def _writable(subject: str, folder: Path, told: str) -> Finding:
    if os.access(folder, os.W_OK):
        return Finding(subject, "good", told)
    return Finding(subject, "wrong", f"{told}; not writable", f"make {folder} writable")
