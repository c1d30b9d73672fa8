"""A small store for commands, and a way to call them as a user does."""

from __future__ import annotations

import math
import time

import pytest

from trainer.__main__ import main
from trainer.runs import Artifact, CheckpointRow, Store, requests

HOSTILE = "<script>alert(1)<b> [bold red] & 'x'"

LOSSES = [0.5, 0.4, 0.45, 0.41, 0.3, 0.35]


def register(store, name, *, state="finished", age=100.0, config=None, losses=(), epochs=None):
    """Record a run, with a validation loss per epoch."""
    now = time.time()
    store.register(
        name,
        directory=f"/elsewhere/{name}",
        host="another",
        pid=1,
        time=now - age,
        config=config,
        environment={"jax": "0.10.2", "python": "3.11"},
    )
    for epoch, loss in enumerate(losses, 1):
        values = {"val/loss": loss, "val/accuracy": 1 - loss, "time/epoch_seconds": 0.5}
        values |= {"time/hook/evaluate/val": 0.25, "gradients/norm/w": 2.0}
        store.write_records(name, epoch, 10 * epoch, values)
    silent = 7200 if state == "stalled" else 0
    for ago in (silent + 2, silent + 1):
        store.heartbeat(
            name, time=now - ago, epoch=len(losses), step=10 * len(losses), epochs=epochs
        )
    if state not in ("running", "stalled"):
        store.end(name, state, time=now - 1, error="ValueError: nan" if state == "failed" else "")


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Four runs: finished, running, stalled and failed."""
    monkeypatch.setenv("ENTRACTE_STORE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.chdir(tmp_path)
    with Store(tmp_path) as store:
        adamw, sgd = ({"optimizer": {"name": n, "rate": r}} for n, r in (("adamw", 1), ("sgd", 2)))
        register(store, "alpha", config=adamw, losses=(0.5, 0.25, 0.375), epochs=3, age=400)
        register(store, "beta", config=sgd, losses=(0.5, 0.125), epochs=9, state="running", age=30)
        register(store, "gamma", config=adamw, losses=(0.75,), epochs=9, state="stalled", age=9000)
        register(store, "delta", losses=(math.nan,), state="failed", age=500)
        for epoch in (2, 3):
            scores = {"val/loss": 0.125 + epoch / 16}
            row = CheckpointRow(
                epoch, f"/elsewhere/{epoch}", 2000, scores, str(epoch), "2025-01-01"
            )
            store.write_checkpoint("alpha", row)
            requests.create_request(store, "alpha", epoch, "held", checksum=str(epoch), time=0.0)
        store.write_artifact("alpha", Artifact("/elsewhere/r.gif", "replay", 3, 30, 5))
        claimed = requests.claim_request(store, "worker", ["held"], lease=60)
        requests.finish_request(store, claimed, {"held/accuracy": 0.875})
        yield store


@pytest.fixture
def run(capsys):
    """Call the command line; returns exit status, standard output and standard error."""

    def call(*words):
        status = main(list(words))
        told = capsys.readouterr()
        return status, told.out, told.err

    return call


@pytest.fixture
def digits_store(tmp_path, monkeypatch):
    """A store in `runs`, the place where commands look, with a run `digits` of six epochs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ENTRACTE_STORE", raising=False)
    (tmp_path / "runs" / "digits").mkdir(parents=True)
    with Store("runs") as opened:
        _register_plain(opened, "digits", str(tmp_path / "runs" / "digits"))
        for epoch, loss in enumerate(LOSSES, 1):
            opened.write_records("digits", epoch, 28 * epoch, {"val/loss": loss})
        yield opened


@pytest.fixture
def hostile(digits_store):
    """A run whose texts are all hostile; returns its name."""
    markup = {"\x1b[2J" + HOSTILE: "\x1b[31m" + HOSTILE}
    _register_plain(digits_store, HOSTILE, "/runs/" + HOSTILE, config=markup, environment=markup)
    for epoch in (1, 2):
        values = {"\x1b[2J[red]val/loss": 1 / epoch, f"{HOSTILE}/loss": 1.0, "said": "\x1b[2J"}
        digits_store.write_records(HOSTILE, epoch, epoch, values)
    digits_store.end(HOSTILE, "failed", time=1.0, error=f"ValueError: {HOSTILE}")
    return HOSTILE


def _register_plain(store, name, directory, **more):
    store.register(name, directory=directory, host="here", pid=1, time=0.0, **more)
