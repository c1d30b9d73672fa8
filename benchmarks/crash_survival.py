"""Does a run that is killed at any instant resume as if nothing had happened?

Each trial kills a fresh run with SIGKILL, half of them at random between imports and its end, half
at a random moment after a save began; starts it again; and compares the results of the two
processes with those of an uninterrupted run: the fingerprint of the final state, every line of its
log and every point that TensorBoard reads. Processes are forked from one that has imported all
libraries and not initialised JAX, so that more of their life is training. `--program` trains on
other data: `conversations` is a mixture of packed conversations and texts, whose weights change
with the step; `preferences` is DPO of adapters, and `rewards` GRPO; others, such as `torchdata`,
read the data of another library, which must be installed. Exits with 1 if anything differs.
"""

import contextlib
import functools
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import _crashing
import _measuring
import numpy as np
from _bucket_server import bucket_server
from _killed_programs import PROGRAMS
from _killed_sources import list_preloaded

from trainer.checkpoints import publishing
from trainer.checkpoints.storage.bucket_path import BucketPath
from trainer.checkpoints.storage.run_paths import list_names, remove_tree

LIMIT = 300
"""Seconds after which a process is taken to hang."""

SAVING = 0.02
"""Seconds after the beginning of a save within which half of the kills fall; a save takes 10 ms."""


class Trial(NamedTuple):
    """What became of one kill."""

    where: str
    survived: bool
    identical: bool
    lost: int
    doubled: int
    seconds: float
    """Of the run that went on."""


def trial(start, directory, bucket, wanted, seconds, random):
    """Kill a run once, within `seconds` of making its hooks or in a save, and resume it."""
    in_save, run = random.random() < 0.5, _crashing.find_run(directory, bucket)
    killed = False
    while not killed:  # one that had ended before is no trial
        shutil.rmtree(directory, ignore_errors=True)
        remove_tree(run)
        directory.mkdir()
        process = start(directory)
        if in_save:
            epoch = int(random.integers(1, _crashing.EPOCHS + 1))
            wait = random.uniform(0, SAVING)
            killed = _crashing.kill_in_save(process, run, epoch, wait)
        else:
            killed = _crashing.kill_after(process, directory, random.uniform(0, seconds))
    where = at(directory, run)
    began = time.perf_counter()
    survived = _crashing.completed(start(directory), LIMIT)
    seconds = time.perf_counter() - began
    if not survived:
        return Trial(where, False, False, 0, 0, seconds)
    got = _crashing.left(directory)
    lost, doubled = _crashing.lost_and_doubled(wanted, got)
    return Trial(where, True, got.fingerprint == wanted.fingerprint, lost, doubled, seconds)


def at(directory, run):
    """Say where in its life a run was killed, by what lies there."""
    published = publishing.list_epochs(run / "checkpoints")
    if isinstance(run, BucketPath):
        in_save = len(list_names(run / "data")) > len(published)
    else:
        in_save = any("." in path.name for path in (run / "checkpoints").iterdir())
    if in_save:
        return "in a save"
    if published:
        return "between saves"
    lines = directory / "metrics.jsonl"
    recorded = lines.exists() and lines.stat().st_size
    return "before the first checkpoint" if recorded else "before the first record"


def main():
    parser = _measuring.arguments(__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=None, help="at random where it is not given")
    parser.add_argument("--bucket", action="store_true", help="keep checkpoints on a server of S3")
    parser.add_argument("--program", choices=PROGRAMS, default="digits", help="what runs train")
    parser.add_argument("--overlap", action="store_true", help="kill runs with overlap")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    options = parser.parse_args()
    kills = 2 if options.quick else options.kills
    seed = options.seed if options.seed is not None else int(time.time())
    _measuring.CONSOLE.print(f"{kills} kills, --seed {seed}")
    context = _crashing.nursery(*list_preloaded(options.program))
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        bucket = None
        if options.bucket:
            bucket = stack.enter_context(bucket_server())
            os.environ.update(bucket.environment)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(folder, "cache"))
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        for name in ("first", "whole"):  # the first fills the cache
            directory = Path(folder, name)
            directory.mkdir()
            process = _crashing.started(context, directory, bucket, program=options.program)
            _crashing.await_chain(process, directory)
            began = time.perf_counter()
            assert _crashing.completed(process, LIMIT)
            seconds = time.perf_counter() - began
        wanted = _crashing.left(directory)
        assert wanted == _crashing.left(Path(folder, "first"))

        start = functools.partial(
            _crashing.started,
            context,
            bucket=bucket,
            program=options.program,
            overlap=options.overlap,
        )

        def one(number):
            random = np.random.default_rng((seed, number))
            return trial(start, Path(folder, str(number)), bucket, wanted, seconds, random)

        with ThreadPoolExecutor(options.jobs) as pool:
            trials = list(pool.map(one, range(kills)))
    places = sorted({trial.where for trial in trials})
    rows = [counted(place, [trial for trial in trials if trial.where == place]) for place in places]
    total = counted("all", trials)
    _measuring.show(
        "Killed and started again",
        tuple(total),
        [tuple(str(value) for value in row.values()) for row in [*rows, total]],
    )
    records = len(wanted.lines) + sum(map(len, wanted.points.values()))
    went_on = _measuring.spread([trial.seconds for trial in trials])
    _measuring.finish(
        options,
        "crash_survival",
        unit="seconds; of runs that went on, the start of the process included",
        warm_up="two whole runs, of which the first fills the compilation cache",
        repeats=kills,
        measured={
            "a whole run, from the making of its hooks": _measuring.spread([seconds]),
            "going on": went_on,
        },
        ratios={},
        program=options.program,
        counts={"seed": seed, "records a run": records, "by place": rows, "total": total},
        bars=[
            _measuring.bar("survived", total["survived"], least=kills),
            _measuring.bar("identical", total["identical"], least=kills),
            _measuring.bar("records lost", total["lost"], most=0),
            _measuring.bar("records doubled", total["doubled"], most=0),
        ],
    )
    whole = total["survived"] == total["identical"] == kills
    sys.exit(0 if whole and not total["lost"] and not total["doubled"] else 1)


def counted(place, trials):
    """Sum up trials."""
    return {
        "killed": place,
        "kills": len(trials),
        "survived": sum(trial.survived for trial in trials),
        "identical": sum(trial.identical for trial in trials),
        "lost": sum(trial.lost for trial in trials),
        "doubled": sum(trial.doubled for trial in trials),
    }


if __name__ == "__main__":
    main()
