"""What does a checkpoint of 1,000 processes cost the main process, the file system and a reader?

Baseline: the same with 10 and 100 processes. Only this process exists: it calls the functions of
the library in the name of each of the others, on a disk of this machine. So the figures count what
is computed, and the operations on files; no network file system takes part, and none was measured.

Every array is split over all processes, as `fsdp()` does, and has 256 bytes on each: what is
measured grows with the number of pieces, not with their bytes.

Measured, for 60 and 300 arrays:

- the part that each other process writes: CPU-milliseconds, bytes, operations on files;
- the main process from its own bytes to the published checkpoint, all parts being there, in the
  first save of a run, which lists all pieces, and in later ones; and while parts still arrive;
- a compiled call of some 10 ms in the main thread, alone and beside a first save;
- removing such a checkpoint;
- a reader: one process of as many as wrote it, of half and of twice as many, of a mesh with a
  second axis, and a single process that needs everything.

CPU-seconds are those of the process (`time.process_time`); bytes are from `/proc/self/io`;
operations are the calls of Python that open, list, make, rename, sync or remove a name, or ask for
its status.
"""

import collections
import functools
import multiprocessing
import os
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

import _measuring
import jax
import jax.numpy as jnp
from _simulated_processes import (
    COLUMNS,
    EPOCH,
    HEAD,
    ROWS,
    as_process,
    link_parts,
    snapshot,
    write_parts,
)

from trainer.checkpoints import manifest, parts, piece_reader, publishing
from trainer.checkpoints.arrays.orbax_index import INDEX_FILES
from trainer.checkpoints.arrays.sharing import EarlierPieces
from trainer.checkpoints.staging import Staging

SECOND_AXIS = 4
"""Devices along the second axis of a mesh."""

OPERATIONS = ("open", *(f"os.{x}" for x in ("listdir", "scandir", "mkdir", "rename", "remove")))
"""Those that Python reports to an audit hook; opening includes creating."""

MAIN = ("first save", "later save", "parts arriving", "removing")
"""What the main process does."""

counts = collections.Counter()


def count(event, arguments):
    """Count an operation, but on files of the kernel."""
    if event in OPERATIONS and not str(arguments[0]).startswith(("/proc/", "/sys/")):
        counts[event.removeprefix("os.")] += 1


def counting(name, call):
    """Return a function that counts calls of another."""

    def counted(*args, **kwargs):
        counts[name] += 1
        return call(*args, **kwargs)

    return counted


def read_bytes_so_far():
    """Return the bytes that this process has read of files, cached or not."""
    return int(Path("/proc/self/io").read_text().split()[1])


def measure(do):
    """Call a function; return its result, and its seconds, CPU-seconds, bytes read, operations."""
    counts.clear()
    read, cpu, began = read_bytes_so_far(), time.process_time(), time.perf_counter()
    result = do()
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    operations = dict(counts)
    return result, {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "megabytes_read": (read_bytes_so_far() - read) / 1e6,
        "operations": {"all": sum(operations.values()), **operations},
    }


def measure_saves(directory, template, processes, arrays, rounds):
    """Return the figures of a first save, of later ones, of removing, and sizes."""
    memory, staging = publishing.RunMemory(), Staging(directory, None)
    own = snapshot(processes, arrays, 0)
    saves, removals = [], []
    for _ in range(1 + rounds):
        stage = staging.choose_stage(EPOCH)
        link_parts(template, stage)
        wait = functools.partial(staging.wait_for_parts, stage, processes)
        save = functools.partial(
            publishing.write_checkpoint,
            stage,
            own,
            HEAD,
            lambda: False,
            wait,
            memory,
            EarlierPieces(),
        )
        saves.append(measure(save)[1])
        if len(saves) <= rounds:
            remove = functools.partial(publishing.remove_checkpoint, directory, EPOCH, memory.named)
            removals.append(measure(remove)[1])
    checkpoint = directory / str(EPOCH)
    sizes = {
        "manifest_bytes": (checkpoint / "manifest.json").stat().st_size,
        "part_bytes": parts.get_part_file(checkpoint, 1).stat().st_size,
        "orbax_index_bytes": sum((checkpoint / "arrays" / x).stat().st_size for x in INDEX_FILES),
        "files": sum(path.is_file() for path in checkpoint.rglob("*")),
    }
    return saves[0], saves[1:], removals, sizes


def measure_arrival(directory, processes, arrays):
    """Return the figures of waiting for parts that another process writes meanwhile."""
    staging = Staging(directory, None)
    stage = staging.choose_stage(EPOCH)
    stage.mkdir()
    context = multiprocessing.get_context("spawn")
    writer = context.Process(target=write_parts, args=(stage, processes, arrays))
    writer.start()
    found = measure(lambda: staging.wait_for_parts(stage, processes))[1]
    writer.join()
    shutil.rmtree(stage)
    return found


@jax.jit
def compute(x):
    """Be busy for some milliseconds, as a step is."""
    return jax.lax.fori_loop(0, 40, lambda _, y: y @ x / jnp.linalg.norm(y), x)


def measure_calls(directory, template, processes, arrays):
    """Return the milliseconds of a compiled call, alone and beside a first save in a thread."""
    staging, x = Staging(directory, None), jnp.ones((256, 256)) + jnp.eye(256)
    stage = staging.choose_stage(EPOCH)
    link_parts(template, stage)
    own, wait = snapshot(processes, arrays, 0), lambda: staging.wait_for_parts(stage, processes)
    arguments = (stage, own, HEAD, lambda: False, wait, publishing.RunMemory(), EarlierPieces())
    saving = threading.Thread(target=publishing.write_checkpoint, args=arguments)

    def call():
        return _measuring.timed(lambda: compute(x).block_until_ready()) * 1e3

    call()
    alone = [call() for _ in range(100)]
    saving.start()
    beside = [call()]
    while saving.is_alive():
        beside.append(call())
    saving.join()
    return {"call alone, ms": _measuring.spread(alone), "beside, ms": _measuring.spread(beside)}


def needs(processes, readers):
    """Return reader to the boxes of each array that it needs, and the number of its process."""
    rows = processes * ROWS

    def slab(count, number, columns=(0, COLUMNS)):
        return [((number * rows // count, (number + 1) * rows // count), columns)]

    quarter = (0, COLUMNS // SECOND_AXIS)
    return {
        "as many processes": (slab(processes, readers), readers),
        "half as many": (slab(processes // 2, readers // 2), readers // 2),
        "twice as many": (slab(2 * processes, readers), readers),
        f"data x {SECOND_AXIS}": (
            slab(max(processes // SECOND_AXIS, 1), readers // SECOND_AXIS, quarter),
            readers,
        ),
        "one process": (slab(1, 0), 0),
    }


def read(directory, boxes):
    """Read what a process needs of a checkpoint, as a restore does, and check its values."""
    content = publishing.read_manifest(directory, EPOCH)
    leaves = [leaf for group in manifest.parse_leaves(content).values() for leaf in group]
    needed = {leaf.path: boxes for leaf in leaves}
    blocks = piece_reader.read_blocks(directory, EPOCH, content, leaves, needed)
    for found in blocks.values():
        for box, data in found:
            if not (data == box[0][0] // ROWS % 251).all():
                raise RuntimeError(f"{box} was not read as it was written")


def measure_readers(directory, processes, rounds):
    """Return the figures of each kind of reader."""
    figures = {}
    for name, (boxes, process) in needs(processes, processes // 2 + 1).items():
        with as_process(process):
            runs = [measure(lambda: read(directory, boxes))[1] for _ in range(rounds)]  # noqa: B023
        figures[name] = summarize(runs)
    return figures


def summarize(runs):
    """Describe the figures of repeated calls; operations are the same in each."""
    keys = ("seconds", "cpu_seconds")
    return {
        **{key: _measuring.spread([run[key] for run in runs]) for key in keys},
        "megabytes_read": runs[-1]["megabytes_read"],
        "operations": runs[-1]["operations"],
    }


def measure_size(directory, processes, arrays, rounds):
    """Return all figures of a checkpoint of so many processes and arrays."""
    template = directory / "template"
    template.mkdir(parents=True)
    checkpoints = directory / "checkpoints"
    checkpoints.mkdir()
    written = measure(lambda: write_parts(template, processes, arrays))[1]
    each = {key: written[key] / (processes - 1) for key in ("seconds", "cpu_seconds")}
    each["operations"] = {k: n / (processes - 1) for k, n in written["operations"].items()}
    first, later, removals, sizes = measure_saves(checkpoints, template, processes, arrays, rounds)
    found = {
        "a part": each,
        "first save": summarize([first]),
        "later save": summarize(later),
        "parts arriving": summarize([measure_arrival(directory, processes, arrays)]),
        "removing": summarize(removals),
        "calls": measure_calls(checkpoints, template, processes, arrays),
        "readers": measure_readers(checkpoints, processes, rounds),
        "sizes": sizes,
    }
    shutil.rmtree(directory)
    return found


def show_tables(measured):
    """Print the figures."""
    rows, reads, sizes, calls = [], [], [], []
    for what, found in measured.items():
        rows += [(f"{what}: {name}", *cells(found[name])) for name in MAIN]
        reads += [(f"{what}: {name}", *cells(x)) for name, x in found["readers"].items()]
        calls.append((what, *(y for x in found["calls"].values() for y in _measuring.columns(x))))
        part, size = found["a part"], found["sizes"]
        sizes.append(
            (
                what,
                *(_measuring.text(part["cpu_seconds"] * 1e3), f"{part['operations']['all']:.0f}"),
                *(f"{size[x]:,}" for x in ("part_bytes", "manifest_bytes", "orbax_index_bytes")),
                f"{size['files']:,}",
            )
        )
    columns = ("", "seconds", "CPU-seconds", "MB read", "operations", "of them opened")
    _measuring.show("The main process", columns, rows)
    _measuring.show("A reader", columns, reads)
    header = ("", "CPU-ms of a part", "operations", "bytes", "manifest", "Orbax index", "files")
    _measuring.show("Sizes", header, sizes)
    header = ("", "alone", "quartiles", "beside a first save", "quartiles")
    _measuring.show("Milliseconds of a compiled call in the main thread", header, calls)


def cells(figures):
    """Write figures as the cells of a row."""
    operations = figures["operations"]
    return (
        _measuring.text(figures["seconds"]["median"]),
        _measuring.text(figures["cpu_seconds"]["median"]),
        _measuring.text(figures["megabytes_read"]),
        f"{operations['all']:,}",
        f"{operations.get('open', 0):,}",
    )


def main():
    parser = _measuring.arguments(__doc__)
    parser.add_argument("--directory", type=Path, help="where to write; a temporary one if absent")
    options = parser.parse_args()
    numbers, arrays, rounds = ([8], [3], 1) if options.quick else ([10, 100, 1000], [60, 300], 5)
    sys.addaudithook(count)
    for name in ("stat", "lstat", "fsync"):
        setattr(os, name, counting(name, getattr(os, name)))
    measured = {}
    for processes in numbers:
        for leaves in arrays:
            with tempfile.TemporaryDirectory(dir=options.directory) as directory:
                found = measure_size(Path(directory) / "run", processes, leaves, rounds)
            measured[f"{processes:,} processes, {leaves} arrays"] = found
    show_tables(measured)
    *_, (largest, figures) = measured.items()
    cpu = {name: figures[name]["cpu_seconds"]["median"] for name in ("first save", "later save")}
    opened = figures["readers"]["half as many"]["operations"]["open"]
    _measuring.finish(
        options,
        "publishing_at_scale",
        unit="seconds, CPU-seconds, megabytes, operations on files",
        warm_up="none: the first save of a run is a figure of its own",
        repeats=rounds,
        measured=measured,
        ratios={f"{largest}: first / later save, CPU": cpu["first save"] / cpu["later save"]},
        bars=[
            _measuring.bar(f"{largest}: CPU-s of a later save", cpu["later save"], most=0.5),
            _measuring.bar(f"{largest}: files that one of half as many opens", opened, most=10),
        ],
        notes=["1,000 processes were simulated by one, on a local disk"],
    )


if __name__ == "__main__":
    main()
