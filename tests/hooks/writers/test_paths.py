"""Paths as arguments: a URL is refused, `~` is the home directory, `chdir` changes nothing."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

import hooks
import trainer
from trainer import data, rl
from trainer.checkpoints.load import read_part
from trainer.checkpoints.poll import make_poller
from trainer.checkpoints.storage.directory_lock import find_holder, lock_directory
from trainer.commands.export import export
from trainer.commands.lookup.checkpoint_choice import NEWEST, choose_checkpoint
from trainer.commands.report import report
from trainer.commands.terminal.calling import CommandError
from trainer.configuration.config_files import save_config
from trainer.runs import Run, Store

URL, OTHER_URL = "s3://bucket/run", "https://bucket/run"

TAKE_BUCKETS = (
    *("Checkpoints", "follow_checkpoints", "load_params", "newer", "read_part", "restore"),
    "save_checkpoints",
)

TAKERS = {
    "Checkpoints": trainer.Checkpoints,
    "Config": lambda path: trainer.TrainingConfig(run=path),
    "JsonLines": hooks.JsonLines,
    "MLflow": hooks.MLflow,
    "MLflow artifacts": lambda path: hooks.MLflow(".", artifacts=path, enabled=False),
    "MLflow uri": lambda path: hooks.MLflow(".", uri=f"sqlite:///{path}", enabled=False),
    "MemoryMap": lambda path: data.MemoryMap({"inputs": path}, batch_size=2),
    "Run": Run,
    "Run's store": lambda path: Run("run", store=path),
    "Store": Store,
    "TensorBoard": hooks.TensorBoard,
    "Tokens": lambda path: data.Tokens(path, batch_size=2, length=4),
    "WandB": hooks.WandB,
    "WandB artifacts": lambda path: hooks.WandB(".", artifacts=path, enabled=False),
    "beat": hooks.heartbeat,
    "cache_compilations": trainer.cache_compilations,
    "chosen": lambda path: choose_checkpoint(path, None, NEWEST),
    "export": lambda path: export("run", to=path),
    "export_params": lambda path: trainer.export_params({"w": np.ones(2)}, path),
    "follow_checkpoints": hooks.follow_checkpoints,
    "held": find_holder,
    "load_config": lambda path: trainer.load_config(path, trainer.TrainingConfig),
    "load_params": lambda path: trainer.load_params(path, {"w": np.ones(2)}),
    "load_replay": rl.load_replay,
    "lock": lock_directory,
    "newer": make_poller,
    "pack_tokens": lambda path: data.pack_tokens([[1]], path, vocabulary=2),
    "plot_history": lambda path: hooks.plot_history("m.jsonl", path),
    "plot_history's records": lambda path: hooks.plot_history(path, "curves.png"),
    "profile": hooks.profile,
    "read_part": lambda path: read_part(path, {}),
    "record_times": hooks.record_times,
    "replay": lambda path: hooks.backtest((), path),
    "report": lambda path: report("run", to=path),
    "restore": lambda path: trainer.restore(path, None),
    "roll_back_on_nan": lambda path: hooks.roll_back_on_nan(directory=path),
    "save_checkpoints": hooks.save_checkpoints,
    "save_config": lambda path: save_config(trainer.TrainingConfig(), path),
    "write_report": lambda path: hooks.write_report(path, records="m.jsonl"),
    "write_report's records": lambda path: hooks.write_report("page.html", records=path),
}


@pytest.mark.parametrize("taker", TAKERS)
def test_a_url_is_refused_at_once_and_nothing_is_created(taker, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        (ValueError, CommandError), match=r"local file system; got .*://bucket|a store is"
    ):
        TAKERS[taker](OTHER_URL if taker in TAKE_BUCKETS else URL)
    assert not list(tmp_path.iterdir())


def test_a_url_is_refused_for_replays(tmp_path, monkeypatch, linear):
    from trainer.rl.environments import cartpole

    monkeypatch.chdir(tmp_path)
    policy = SimpleNamespace(
        init=lambda key, x: ({"w": np.zeros((4, 2), np.float32)}, {}),
        apply=lambda params, model_state, x, *, key, train: (
            {"logits": x @ params["w"], "value": x[:, 0]},
            model_state,
        ),
    )
    with pytest.raises(ValueError, match="record_replays needs a path on a local"):
        hooks.record_replays(policy, cartpole(), URL)
    assert not list(tmp_path.iterdir())


def relative(place):
    """Make one of each hook that writes, with relative paths."""
    run = Run(place)
    lines = hooks.JsonLines(f"{place}/metrics.jsonl")
    writers = [lines, hooks.TensorBoard(f"{place}/tb"), hooks.WandB(place), hooks.Database(run)]
    return [
        hooks.log_metrics(*writers),
        hooks.heartbeat(f"{place}/alive.json"),
        hooks.profile(f"{place}/profiled", epochs=[2]),
        hooks.record_times(f"{place}/times.json"),
        hooks.roll_back_on_nan(directory=place),
        hooks.plot_history(f"{place}/metrics.jsonl", f"{place}/curves.png"),
        hooks.write_report(f"{place}/page.html", records=f"{place}/metrics.jsonl"),
        hooks.save_checkpoints(place, max_cost=None),
    ]


@pytest.mark.parametrize("place", ["runs/digits", "~/runs/digits"])
def test_a_later_chdir_changes_nothing_and_a_tilde_is_the_home_directory(
    place, tmp_path, monkeypatch, state, phase
):
    pytest.importorskip("wandb")
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    made = relative(place)
    monkeypatch.chdir(elsewhere)
    trainer.fit(state, phase, epochs=2, hooks=made)
    assert not list(elsewhere.iterdir())
    assert {path.name for path in (home / "runs" / "digits").iterdir()} == {
        *("alive.json", "checkpoints", "curves.png", "lock", "metrics.jsonl", "page.html"),
        *("profiled", "queue.jsonl", "run_id", "tb", "times.json", "wandb"),
    }
    assert [path.name for path in home.glob("[!.]*")] == ["runs"]
