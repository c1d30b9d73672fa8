"""Evaluators as processes: a run with many checkpoints, and workers that may be killed."""

import logging
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import sklearn.datasets  # noqa: F401 (so that processes have it from the start)

import models
import trainer
from trainer import data, losses
from trainer.evaluators import Suite, WorkerSettings, work
from trainer.runs import Store
from trainer.runs.requests import create_request, list_requests, list_results
from trainer.runs.run_directory import describe_checkpoint

RUN = "digits"

SUITE = "digits"

LIMIT = 300
"""Seconds after which something is taken to hang."""


def made() -> tuple[Any, Any, trainer.Phase]:
    """Build the task, its first state and its evaluation."""
    train, val = data.digits(batch_size=64)
    task = trainer.supervised(
        models.mlp(classes=10, hidden=(128,)), losses.classification, optax.adam(1e-3)
    )
    start = task.init(jax.random.key(0), train.example)
    return task, start, trainer.evaluation(task.measure, val)


def saved(folder: Path, count: int) -> None:
    """Record a run with so many checkpoints, all different."""
    _, start, _ = made()
    run = folder / RUN
    with trainer.Checkpoints(run, keep=count) as checkpoints:
        for epoch in range(1, count + 1):
            params = jax.tree.map(lambda w, n=epoch: w * n, start.params)
            checkpoints.save(start.replace(params=params, epoch=jnp.int32(epoch)))
            checkpoints.wait()
    with Store(folder) as store:
        now = time.time()
        store.register(RUN, directory=str(run), host="", pid=os.getpid(), time=now)
        for epoch in range(1, count + 1):
            store.write_checkpoint(RUN, describe_checkpoint(run, epoch))


def ask_for(folder: Path, suite: str = SUITE) -> float:
    """Request all checkpoints at once; return the time when the requests are in the store."""
    with Store(folder) as store:
        with store.connection.transaction():
            for checkpoint in store.checkpoints(RUN):
                create_request(
                    store,
                    RUN,
                    checkpoint.epoch,
                    suite,
                    checksum=checkpoint.checksum,
                    time=time.time(),
                )
        return store.connection.now()


def serve(folder: Path, ready: Any, suite: str, settings: dict[str, float], slow: float) -> None:
    """Answer requests until a signal comes; each answer is also written to `answered.txt`.

    Args:
        folder: of the runs.
        ready: an event to set when all is compiled.
        suite: under which name.
        settings: of `WorkerSettings`.
        slow: seconds to sleep in each evaluation.
    """
    _, start, val = made()
    trainer.evaluate(start.replace(opt_state=()), val)
    lines = logging.FileHandler(folder / "answered.txt")
    lines.addFilter(lambda record: record.getMessage().startswith("evaluated"))
    log = logging.getLogger("entracte")
    log.addHandler(lines)
    log.propagate = False
    log.setLevel(logging.INFO)

    def linger(state, metrics):
        time.sleep(slow)
        return state

    hooks = (lambda folder: linger) if slow else None
    ready.set()
    work(folder, Suite(suite, start, val, hooks=hooks), WorkerSettings(**settings))


class Workers:
    """Processes that serve; those that are still there in the end are ended."""

    def __init__(self, folder: Path, *, suite: str = SUITE, slow: float = 0.0, **settings: float):
        self._context = nursery()
        self._arguments = folder, suite, settings, slow
        self._all: list[tuple[Any, Any]] = []  # processes, each with what it sets when it is ready

    def start(self, count: int) -> None:
        """Start some, and wait until they are ready."""
        for _ in range(count):
            self._one()
        for _, ready in self._all:
            assert ready.wait(LIMIT)

    def kill(self, chosen: random.Random) -> bool:
        """Kill one that is ready, and start another in its place; False where none is ready."""
        able = [(process, ready) for process, ready in self._all if ready.is_set()]
        if not able:
            return False
        one = chosen.choice(able)
        assert one[0].is_alive()
        one[0].kill()
        one[0].join()
        self._all.remove(one)
        self._one()
        return True

    def _one(self) -> None:
        folder, suite, settings, slow = self._arguments
        ready = self._context.Event()
        process = self._context.Process(target=serve, args=(folder, ready, suite, settings, slow))
        process.start()
        self._all.append((process, ready))

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *exception: object) -> None:
        for process, _ in self._all:
            if process.is_alive():
                os.kill(process.pid, signal.SIGTERM)
        for process, _ in self._all:
            process.join(LIMIT)
            process.kill()
            process.join()


def nursery() -> Any:
    """Return a context whose processes start with all libraries imported, without JAX's backend."""
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    )
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["_evaluators"])
    return context


class Survived(NamedTuple):
    """What became of requests whose workers were killed."""

    requests: int
    results: int
    right: int
    """Results that are, bit for bit, those of evaluating in this process."""
    doubled: int
    """Requests that were answered more than once."""
    lost: int
    """Requests without a result."""
    kills: int
    most_tries: int
    seconds: float


def killing(
    folder: Path, *, requested: int, workers: int, every: float, slow: float, seed: int
) -> Survived:
    """Let workers answer requests while one of them is killed, again and again.

    Args:
        folder: of the runs, empty.
        requested: how many requests.
        workers: how many at a time.
        every: seconds between two kills.
        slow: seconds that an evaluation takes at the least.
        seed: of which is killed.
    """
    saved(folder, requested)
    chosen, kills = random.Random(seed), 0
    with (
        Workers(folder, slow=slow, lease=1.5, pause=0.05, tries=20) as pool,
        Store(folder) as store,
    ):
        pool.start(workers)
        ask_for(folder)
        began = time.monotonic()
        following = began + every
        while any(r.state in ("open", "claimed") for r in list_requests(store)):
            assert time.monotonic() - began < LIMIT
            if time.monotonic() >= following and pool.kill(chosen):
                kills += 1
                following = time.monotonic() + every
            time.sleep(0.02)
        seconds = time.monotonic() - began
        asked, found = list_requests(store), list_results(store, RUN)
    _, start, val = made()
    right = sum(
        scores == trainer.evaluate(trainer.restore(folder / RUN, start, epoch=epoch), val)
        for (_, epoch), scores in found.items()
    )
    told = [line.split()[2] for line in (folder / "answered.txt").read_text().splitlines()]
    return Survived(
        requests=len(asked),
        results=len(found),
        right=right,
        doubled=len(told) - len(set(told)),
        lost=sum(r.state != "done" for r in asked),
        kills=kills,
        most_tries=max(r.tries for r in asked),
        seconds=seconds,
    )
