"""How many records per second does the store take, and how long does it block training?

Baseline: the same rows written by one process with only `executemany` of `sqlite3` and psycopg, as
many per transaction as the library delivers at once, and as durably.

Measured, with 20 metrics per epoch, on SQLite in a file and on a PostgreSQL server of its own where
one is installed:

- blocking: microseconds that `Run.record` of an epoch, and `Run.flush` before a save, take of
  training, which spends 5 ms outside Python between them; the delivering thread runs beside it;
- delivered: records per second from the first `Run.record` until all are in the store, by 1 and by
  8 processes at once, each with a run of its own and as fast as it can.

Each round creates new runs and databases. The delivered records are counted in the store.
"""

import functools
import multiprocessing
import shutil
import sqlite3
import tempfile
import time
from pathlib import Path

import _measuring
import _postgres
import numpy as np

from trainer.runs import Run, Store, recorder
from trainer.runs.sql.connecting import connect

METRICS = tuple(f"train/metric_{number}" for number in range(20))
AWAY_SECONDS = 0.005
FLUSHES = 10
"""Epochs between saves."""

INSERT = (
    "INSERT INTO records (run, name, epoch, step, value, text) VALUES ({0}, {0}, {0}, {0}, {0}, "
    "{0}) ON CONFLICT (run, name, epoch, step) DO UPDATE SET value = excluded.value"
)
BATCH = 7500
"""Rows in a transaction of the baseline: what the library delivers at once."""

WRITERS = {"1 writer": 1, "8 writers": 8}


def values(epoch):
    """Build an epoch's metrics."""
    return {name: 1.0 / (1 + epoch + n) for n, name in enumerate(METRICS)}


def blocking(place, url, epochs):
    """Return (microseconds of each record, of each flush) as training sees them."""
    run = Run(place / "one", store=url)
    run.resume(epoch=0, step=0)
    records, flushes = [], []
    for epoch in range(1, epochs + 1):
        time.sleep(AWAY_SECONDS)
        began = time.perf_counter()
        run.record(epoch, 22 * epoch, values(epoch))
        records.append((time.perf_counter() - began) * 1e6)
        if epoch % FLUSHES == 0:
            flushes.append(_measuring.timed(run.flush) * 1e6)
    run.close()
    return records, flushes


def write(place, url, number, epochs, barrier):
    """Record epochs in a run of its own, as fast as it goes, and deliver them."""
    recorder.CLOSE_SECONDS = 600
    run = Run(place / f"run {number}", store=url)
    run.heartbeat(epoch=0, step=0)
    barrier.wait(120)
    for epoch in range(1, epochs + 1):
        run.record(epoch, 22 * epoch, values(epoch))
    run.close()
    barrier.wait(600)


def delivered(context, place, url, writers, epochs):
    """Return the records per second of so many processes."""
    barrier = context.Barrier(writers + 1)
    arguments = [(place, url, number, epochs, barrier) for number in range(writers)]
    processes = [context.Process(target=write, args=each) for each in arguments]
    for process in processes:
        process.start()
    barrier.wait(120)
    seconds = _measuring.timed(lambda: barrier.wait(600))
    for process in processes:
        process.join(60)
    count = writers * epochs * len(METRICS)
    with Store(url) as store:
        (found,) = store.connection.execute("SELECT count(*) FROM records")
    if found != (count,):
        raise RuntimeError(f"{count} records were accepted, and {found[0]} are in the store")
    return count / seconds


def bare(place, url, epochs):
    """Return the records per second of `executemany` alone."""
    Store(url).close()  # makes the table
    rows = [
        ("one", name, epoch, 22 * epoch, value, None)
        for epoch in range(1, epochs + 1)
        for name, value in values(epoch).items()
    ]
    batches = [rows[begin : begin + BATCH] for begin in range(0, len(rows), BATCH)]
    if url.startswith("sqlite"):
        database = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
        database.execute("PRAGMA synchronous = FULL")
        executemany, statement = database.executemany, INSERT.format("?")
    else:
        import psycopg

        database = psycopg.connect(url, autocommit=True, options="-c search_path=entracte")
        executemany, statement = database.cursor().executemany, INSERT.format("%s")

    def insert():
        for batch in batches:
            database.execute("BEGIN")
            executemany(statement, batch)
            database.execute("COMMIT")

    seconds = _measuring.timed(insert)
    database.close()
    return len(rows) / seconds


def emptied(measure, url):
    """Run a measurement on an empty store, in an empty directory."""
    place = Path(tempfile.mkdtemp(prefix="entracte-runs-"))
    try:
        if url:
            connection = connect(url)
            connection.execute("DROP SCHEMA IF EXISTS entracte CASCADE")
            connection.close()
        return measure(place, url or f"sqlite:///{place}/store.sqlite")
    finally:
        shutil.rmtree(place)


def contestants(context, name, url, epochs, waits):
    """Return contestant to a measurement, and the lists that records and flushes add to."""

    def wait(place, url):
        records, flushes = blocking(place, url, max(20, epochs // 10))
        waits[f"{name}, record of 20 metrics"].extend(records)
        waits[f"{name}, flush"].extend(flushes)
        return float(np.median(records))

    def deliver(writers, place, url):
        return delivered(context, place, url, writers, max(1, epochs // writers))

    measures = {
        f"{name}, blocking": wait,
        f"{name}, bare executemany": functools.partial(bare, epochs=epochs),
    } | {f"{name}, {what}": functools.partial(deliver, n) for what, n in WRITERS.items()}
    return {what: functools.partial(emptied, measure, url) for what, measure in measures.items()}


def main():
    options = _measuring.arguments(__doc__).parse_args()
    epochs, rounds = (40, 1) if options.quick else (4000, 7)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trainer.runs"])
    with _postgres.stores() as (stores, notes):
        waits = {f"{name}, {x}": [] for name in stores for x in ("record of 20 metrics", "flush")}
        entrants = {
            what: measure
            for name, url in stores.items()
            for what, measure in contestants(context, name, url, epochs, waits).items()
        }
        samples = _measuring.interleaved(entrants, rounds=rounds)
    samples = {what: figures for what, figures in samples.items() if "blocking" not in what}
    rates = {what: _measuring.spread(figures) for what, figures in samples.items()}
    waits = {what: w[len(w) // (1 + rounds) :] for what, w in waits.items()}  # but for the warm-up
    blocked = {what: _measuring.spread(figures) for what, figures in waits.items()}
    late = {f"{what}, 99th percentile": float(np.percentile(w, 99)) for what, w in waits.items()}
    ratios = {
        f"{name}, {writers} / bare executemany": _measuring.ratio(
            samples[f"{name}, {writers}"], samples[f"{name}, bare executemany"]
        )
        for name in stores
        for writers in WRITERS
    }
    rows = [(what, *_measuring.columns(figures)) for what, figures in rates.items()]
    _measuring.show("Records a second, delivered", ("", "median", "quartiles"), rows)
    rows = [
        (what, *_measuring.columns(figures), _measuring.text(late[f"{what}, 99th percentile"]))
        for what, figures in blocked.items()
    ]
    columns = ("", "median", "quartiles", "99th percentile")
    _measuring.show("Microseconds that training waits", columns, rows)
    rows = [(what, *_measuring.columns(figures)) for what, figures in ratios.items()]
    _measuring.show("Ratios", ("", "median", "quartiles"), rows)
    records = [what for what in blocked if "record" in what]
    _measuring.finish(
        options,
        "store_throughput",
        unit="records per second; microseconds",
        warm_up="a round",
        repeats=rounds,
        measured={"delivered": rates, "blocking": blocked, "late": late},
        ratios=ratios,
        bars=[
            *(_measuring.bar(what, blocked[what]["median"], most=100) for what in records),
            *(
                _measuring.bar(what, f["median"], least=0.25 if "SQLite" in what else 0.5)
                for what, f in ratios.items()
            ),
        ],
        notes=notes,
    )


if __name__ == "__main__":
    main()
