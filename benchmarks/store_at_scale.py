"""What does a store of runs see when 1,000 runs record into it at once?

Baseline: 20 and 100 runs. One run of 1,000 processes is one writer, since its main process alone
records: this is about 1,000 runs that share a store, SQLite in a file, and a PostgreSQL server of
its own with its default limit of 100 connections, where one is installed.

The runs are objects in four processes, each with its queue on the disk and its delivering thread.
Each records 20 metrics an epoch; epochs take 5 seconds, and the runs' ends of epochs are spread
over them. Measured: seconds to open all runs, and the share that the store did not refuse; seconds
from the last record until all are in the store, and the share that is there then; the most
connections of a server at once; CPU-milliseconds of the writers for each epoch of a run.
"""

import contextlib
import logging
import multiprocessing
import os
import shutil
import tempfile
import time
from pathlib import Path

import _measuring
import _postgres

from trainer.runs import Run, Store, Unreachable
from trainer.runs.sql.connecting import connect

METRICS = {f"train/metric_{number}": 0.5 for number in range(20)}
PROCESSES = 4
START, LIMIT = 600, 60
"""Seconds to wait for processes, and for records in the store."""


def write(place, url, first, count, epochs, seconds, barrier, results):
    """Open runs, record in each of them, and say how long it took and cost."""
    logging.getLogger("entracte").setLevel(logging.ERROR)  # a store that refuses is counted
    began, runs = time.perf_counter(), []
    for number in range(first, first + count):
        with contextlib.suppress(Unreachable):
            run = Run(place / f"run {number}", store=url)
            run.heartbeat(epoch=0, step=0)
            runs.append(run)
    opened, cpu = time.perf_counter() - began, time.process_time()
    barrier.wait(START)
    start = time.monotonic()
    for epoch in range(1, epochs + 1):
        for number, run in enumerate(runs):
            due = start + seconds * (epoch - 1 + number / count)
            time.sleep(max(0.0, due - time.monotonic()))
            run.record(epoch, epoch, METRICS)
    barrier.wait(START)
    barrier.wait(START)  # until the store was looked at
    results.put((opened, len(runs), time.process_time() - cpu))
    results.close()
    results.join_thread()
    os._exit(0)  # a run that is closed waits for its delivery


def count_records(store):
    return store.connection.execute("SELECT count(*) FROM records")[0][0]


def count_connections(store):
    """Count those of runs to a server."""
    where = "application_name = 'entracte' AND pid <> pg_backend_pid()"
    statement = f"SELECT count(*) FROM pg_stat_activity WHERE {where}"
    return store.connection.execute(statement)[0][0]


def measure(url, runs, epochs, seconds):
    """Return the figures of so many runs."""
    context = multiprocessing.get_context("spawn")
    place = Path(tempfile.mkdtemp(prefix="entracte-runs-"))
    is_server, url = bool(url), url or f"sqlite:///{place}/store.sqlite"
    if is_server:
        with contextlib.closing(connect(url)) as connection:
            connection.execute("DROP SCHEMA IF EXISTS entracte CASCADE")
    barrier, results = context.Barrier(PROCESSES + 1), context.Queue()
    share = runs // PROCESSES
    workers = []
    with Store(url) as store:
        for number in range(PROCESSES):
            arguments = (place, url, number * share, share, epochs, seconds, barrier, results)
            workers.append(context.Process(target=write, args=arguments))
            workers[-1].start()
        barrier.wait(START)
        most, ends = 0, time.monotonic() + seconds * epochs
        while time.monotonic() < ends:
            most = max(most, count_connections(store)) if is_server else most
            time.sleep(0.1)
        barrier.wait(START)
        began, wanted = time.monotonic(), runs * epochs * len(METRICS)
        while (found := count_records(store)) < wanted and time.monotonic() < began + LIMIT:
            time.sleep(0.02)
        late = time.monotonic() - began
        barrier.wait(START)
    opened = [results.get(timeout=START) for _ in workers]
    for worker in workers:
        worker.join(START)
    shutil.rmtree(place)
    return {
        "seconds to open": max(x for x, _, _ in opened),
        "share of runs opened": sum(x for _, x, _ in opened) / runs,
        "seconds until all is in the store": late,
        "share in the store": found / wanted,
        "CPU-ms of an epoch": sum(x for _, _, x in opened) / (runs * epochs) * 1e3,
        **({"most connections": most} if is_server else {}),
    }


def main():
    options = _measuring.arguments(__doc__).parse_args()
    numbers, epochs, seconds = ([4], 1, 0.5) if options.quick else ([20, 100, 1000], 6, 5.0)
    with _postgres.stores() as (stores, notes):
        measured = {
            f"{name}, {runs:,} runs": measure(url, runs, epochs, seconds)
            for name, url in stores.items()
            for runs in numbers
        }
    columns = [*dict.fromkeys(what for figures in measured.values() for what in figures)]
    rows = [
        (name, *(_measuring.text(figures[x]) if x in figures else "" for x in columns))
        for name, figures in measured.items()
    ]
    _measuring.show("Runs that share a store", ("", *columns), rows)
    shares = {name: figures["share in the store"] for name, figures in measured.items()}
    _measuring.finish(
        options,
        "store_at_scale",
        unit="seconds, shares, CPU-milliseconds, connections",
        warm_up="none: opening the runs is a figure of its own",
        repeats=f"{epochs} epochs of each run",
        measured=measured,
        ratios={},
        bars=[
            _measuring.bar(f"{what}: share in the store", x, least=1.0)
            for what, x in shares.items()
        ],
        notes=notes,
    )


if __name__ == "__main__":
    main()
