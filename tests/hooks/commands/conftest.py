"""Runs on record, for commands to read."""

from __future__ import annotations

import pytest

from trainer.runs import Store

HOSTILE = "<script>alert(1)<b> [bold red] & 'x'"

LOSSES = [0.5, 0.4, 0.45, 0.41, 0.3, 0.35]


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store in `runs`, the place where commands look, with a run `digits` of six epochs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ENTRACTE_STORE", raising=False)
    (tmp_path / "runs" / "digits").mkdir(parents=True)
    with Store("runs") as opened:
        _register(opened, "digits", str(tmp_path / "runs" / "digits"))
        for epoch, loss in enumerate(LOSSES, 1):
            opened.write_records("digits", epoch, 28 * epoch, {"val/loss": loss})
        yield opened


@pytest.fixture
def hostile(store):
    """A run whose every text would like to be more than that; gives its name."""
    markup = {"\x1b[2J" + HOSTILE: "\x1b[31m" + HOSTILE}
    _register(store, HOSTILE, "/runs/" + HOSTILE, config=markup, environment=markup)
    for epoch in (1, 2):
        values = {"\x1b[2J[red]val/loss": 1 / epoch, f"{HOSTILE}/loss": 1.0, "said": "\x1b[2J"}
        store.write_records(HOSTILE, epoch, epoch, values)
    store.end(HOSTILE, "failed", time=1.0, error=f"ValueError: {HOSTILE}")
    return HOSTILE


def _register(store, name, directory, **more):
    store.register(name, directory=directory, host="here", pid=1, time=0.0, **more)
