"""The command `export`: files that other programs read back."""

from __future__ import annotations

import csv
import json
import math
import sys

import numpy as np
import pyarrow.parquet
import pytest

import hooks
import trainer
from trainer.__main__ import main
from trainer.runs import Run, Store

WANTED = [("loss", 1, 28, 0.5), ('said, "so"\n', 1, 28, "=1+1"), ("loss", 2, 56, math.nan)]


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store in `runs` with a run `plain` that has no directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ENTRACTE_STORE", raising=False)
    with Store("runs") as opened:
        opened.register(
            "plain", directory="/nowhere", host="here", pid=1, time=0.0, config={"a": 1}
        )
        for name, epoch, step, value in WANTED:
            opened.write_records("plain", epoch, step, {name: value})
        yield opened


def _same(rows):
    return [
        (name, epoch, step, value if text is None else text)
        for name, epoch, step, value, text in rows
    ] == pytest.approx(WANTED, nan_ok=True)


def test_csv_and_json(store, tmp_path, capsys):
    assert main(["export", "plain"]) == 0
    assert "plain-export/records.csv" in capsys.readouterr().out
    with open("plain-export/records.csv", newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["name", "epoch", "step", "value", "text"]
    assert rows[0] == ["loss", "1", "28", "0.5", ""]
    assert rows[1] == [WANTED[1][0], "1", "28", "", "'=1+1"]  # a spreadsheet would run it
    assert rows[2] == ["loss", "2", "56", "nan", ""]
    everything = json.loads((tmp_path / "plain-export" / "run.json").read_text())
    assert everything["run"]["config"] == {"a": 1}
    assert [record["value"] for record in everything["records"]] == [0.5, "=1+1", None]
    assert everything.keys() == {
        "run",
        "records",
        "commits",
        "evaluations",
        "artifacts",
        "exported",
    }


def test_parquet(store, tmp_path, capsys):
    assert main(["export", "plain", "--formats", "parquet", "--to", "out", "--json"]) == 0
    path = json.loads(capsys.readouterr().out)["parquet"]
    assert path == str(tmp_path / "out" / "records.parquet")
    table = pyarrow.parquet.read_table(path)
    assert table.column_names == ["name", "epoch", "step", "value", "text"]
    found = [tuple(row.values()) for row in table.to_pylist()]
    for (name, epoch, step, value, text), wanted in zip(found, WANTED, strict=True):
        assert (name, epoch, step) == wanted[:3]
        assert value == pytest.approx(wanted[3], nan_ok=True) if text is None else text == wanted[3]


def test_parquet_without_pyarrow(store, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main(["export", "plain", "--formats", "csv", "parquet"]) == 2
    assert 'pip install "entracte[parquet]"' in capsys.readouterr().err


def test_parameters_of_a_chosen_checkpoint(state, phase, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    saving = hooks.save_checkpoints("runs/halving", keep=3, max_cost=None)
    logging = hooks.log_metrics(hooks.Database(Run("runs/halving")))
    trained, _ = trainer.fit(state, phase, epochs=3, hooks=[logging, saving])
    file = tmp_path / "halving-export" / "params.safetensors"
    assert main(["export", "halving", "--formats", "params"]) == 0
    assert np.array_equal(trainer.load_params(file, state.params)["w"], trained.params["w"])
    assert main(["export", "halving", "--formats", "params", "--epoch", "2"]) == 0
    assert np.array_equal(trainer.load_params(file, state.params)["w"], 2 * trained.params["w"])
    assert main(["export", "halving", "--formats", "csv", "params"]) == 0
    assert file.stat().st_mode == (file.parent / "records.csv").stat().st_mode
    best = ["--best", "train/loss", "--mode", "max"]
    assert main(["export", "halving", "--formats", "params", *best]) == 0
    assert np.array_equal(trainer.load_params(file, state.params)["w"], 4 * trained.params["w"])
    capsys.readouterr()
    assert main(["export", "halving", "--formats", "params", "--epoch", "9"]) == 2
    assert "no checkpoint of epoch 9" in capsys.readouterr().err
    assert main(["export", "halving", "--formats", "params", "--best", "train/los"]) == 2
    assert "Did you mean 'train/loss'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["plan"], "plain"),
        (["plain", "--epoch", "2"], "add --formats params"),
        (["plain", "--formats", "params"], "there is no checkpoint"),
        (["plain", "--to", "runs/store.sqlite"], "cannot be written to"),
    ],
)
def test_errors_name_the_problem(store, words, said, capsys):
    assert main(["export", *words]) == 2
    assert said in capsys.readouterr().err
