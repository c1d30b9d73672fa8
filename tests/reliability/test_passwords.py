"""A run's password is in none of its files, and is never shown."""

from __future__ import annotations

import dataclasses
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import pytest

import hooks
import trainer
from trainer.__main__ import main
from trainer.configuration import Logging, TrainingConfig, load_config, parse_config
from trainer.host.redaction import redact_command
from trainer.runs import Run, Store
from trainer.runs.sql import connecting

PASSWORD = "hunter/2@secret"
KEY = "sk-0123456789"
URL = f"postgresql://me:{PASSWORD}@db.example/runs"


@dataclass(frozen=True)
class Config(TrainingConfig):
    """A configuration with secrets."""

    api_key: str = ""
    data: str = ""


ARGUMENTS = ["--logging.store", URL, "--api-key", KEY, "--data", f"https://{KEY}@example.org/set"]
ARGUMENTS += ["--epochs", "1", "--batch-size", "8", "--logging.no-console"]
ARGUMENTS += ["--checkpointing.max-cost", "None"]


@pytest.fixture
def trained(tmp_path, monkeypatch, phase, state, caplog):
    """Train like a script with a store's URL and password; return the directory."""
    caplog.set_level(logging.DEBUG, "entracte")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py", *ARGUMENTS])
    server = connecting.connect

    def local(url, **settings):
        """Replace a server; it receives the whole URL."""
        assert url == URL
        return server(f"sqlite:///{tmp_path}/server.sqlite", **settings)

    monkeypatch.setattr("trainer.runs.store.connect", local)
    config = parse_config(Config, [*ARGUMENTS, "--run", str(tmp_path / "run")])
    assert config.logging.store == URL
    trainer.fit(state, phase, epochs=1, hooks=hooks.build_hooks(config))
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    return config


def holding(folder):
    """The files that hold a secret."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 8
    return [p.name for p in files if any(s.encode() in p.read_bytes() for s in (PASSWORD, KEY))]


def test_no_file_of_a_run_and_no_row_of_its_store_holds_it(trained, tmp_path, caplog, capsys):
    with Store(tmp_path / "server.sqlite") as store:
        row = store.run("run")
        store.connection.execute("PRAGMA wal_checkpoint")
    assert holding(tmp_path) == []
    assert (
        "--logging.store postgresql://me:***@db.example/runs --api-key ***"
        in (row.environment["command"])
    )
    assert row.config["api_key"] == "***"
    assert row.config["data"] == "https://***@example.org/set"
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("postgresql://me:***@db.example/runs") == 2  # setting and command
    for words in (["show", "run"], ["show", "run", "--json"], ["export", "run"], ["report", "run"]):
        assert main([*words, "--store", str(tmp_path / "server.sqlite")]) == 0
    assert holding(tmp_path) == []
    reported = "".join(capsys.readouterr()) + caplog.text
    assert PASSWORD not in reported
    assert KEY not in reported


def test_a_run_resumes_with_any_password(trained, phase, state, tmp_path):
    kept = load_config(tmp_path / "run" / "config.yaml", Config)
    assert kept.logging.store == "postgresql://me:***@db.example/runs"
    for config in (kept, dataclasses.replace(trained, api_key="another")):
        config = dataclasses.replace(config, epochs=2, logging=Logging(store="off", console=False))
        chain = hooks.build_hooks(config)
        resumed, _ = trainer.fit(state, phase, epochs=2, hooks=chain)
        assert int(resumed.epoch) == 2
    other = dataclasses.replace(trained, data="https://example.org/other", logging=config.logging)
    with pytest.raises(ValueError, match=r"data: saved \"https://\*\*\*@example.org/set\", now"):
        trainer.fit(state, phase, epochs=3, hooks=hooks.build_hooks(other))


def test_passwords_kept_by_an_older_version_are_not_shown(tmp_path, capsys):
    config = {"store": URL, "hub": {"token": KEY, "name": "me/model"}}
    with Store(tmp_path) as store:
        for name, rate in (("old", 1), ("older", 2)):
            store.register(
                name,
                directory=f"/runs/{name}",
                host="here",
                pid=1,
                time=0.0,
                config={**config, "rate": rate},
                environment={"command": f"train.py --store {URL}"},
            )
            store.end(name, "failed", time=1.0, error=f"OSError: {URL} is away")
    for words in (
        ["runs", "--json"],
        ["show", "old"],
        ["compare", "old", "older"],
        ["export", "old", "--to", str(tmp_path / "out")],
        ["report", "old", "--to", str(tmp_path / "old.html")],
    ):
        assert main([*words, "--store", str(tmp_path)]) == 0
    reported = capsys.readouterr().out + (tmp_path / "old.html").read_text()
    reported += (tmp_path / "out" / "run.json").read_text()
    assert "postgresql://me:***@db.example/runs" in reported
    assert "me/model" in reported
    assert PASSWORD not in reported
    assert KEY not in reported


def test_errors_hide_passwords(tmp_path):
    (tmp_path / "a.yaml").write_text(f"logging: {{store: [{URL!r}]}}\n'{URL}': 3\nfresh: '{URL}'")
    with pytest.raises(ValueError, match="fresh: wanted true or false") as raised:
        load_config(tmp_path / "a.yaml", TrainingConfig)
    assert PASSWORD not in str(raised.value)
    with pytest.raises(ValueError, match="needs a path on a local file system") as raised:
        Run(f"s3://me:{PASSWORD}@bucket/run")
    assert PASSWORD not in str(raised.value)


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--db-password", "a b", "--rate", "1"], "--db-password *** --rate 1"),
        (["--password", "--rate", "1"], "--password --rate 1"),
        (["db.password=p", "HF_TOKEN=p", "seed=1"], "db.password=*** HF_TOKEN=*** seed=1"),
        (["--pad-token", "<pad>", "--max-tokens=8"], "--pad-token <pad> --max-tokens=8"),
    ],
)
def test_a_command_line_is_recorded_without_them(words, shown):
    assert " ".join(redact_command(words)) == shown


def test_other_settings_are_kept_bit_for_bit(tmp_path):
    config = Config(run=Path("runs/a"), data="file:///a:b@c", seed=3)
    from trainer.configuration import save_config, to_dict

    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml", Config) == config
    assert json.loads(json.dumps(to_dict(config)))["data"] == "file:///a:b@c"
