"""From files and flags to a configuration, and back."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pytest

from trainer.checkpoints.saved_config import config_differences
from trainer.configuration import (
    Checkpointing,
    Logging,
    Optimizer,
    Schedule,
    TrainingConfig,
    load_config,
    parse_config,
    save_config,
    to_comparable,
    to_dict,
)


@dataclass(frozen=True)
class Config(TrainingConfig):
    """A script's own."""

    run: Path = Path("runs/mine")
    network: Literal["cnn", "mlp"] = "cnn"
    widths: tuple[int, ...] = (8, 8)
    checkpointing: Checkpointing = Checkpointing(best="val/accuracy", mode="max")


@pytest.fixture
def write(tmp_path):
    """Writes a configuration file, and gives its path."""

    def write(text):
        path = tmp_path / "given.yaml"
        path.write_text(text)
        return path

    return write


def test_settings_that_a_file_does_not_name_keep_the_script_s_default(write):
    path = write(
        "epochs: 3\nwidths: [4]\ncheckpointing: {keep: 5}\noptimizer: {betas: [0.9, 0.95]}"
    )
    assert load_config(path, Config) == Config(
        epochs=3,
        widths=(4,),
        checkpointing=Checkpointing(keep=5, best="val/accuracy", mode="max"),
        optimizer=Optimizer(betas=(0.9, 0.95)),
    )
    assert load_config(write("# nothing"), Config) == Config()


def test_all_mistakes_are_listed_at_once_with_their_paths(write):
    path = write(
        "epoch: 3\n"
        "learning_rate: 0.1\n"
        "seed: '1'\n"
        "network: rnn\n"
        "optimizer: {learning_rte: 1e-3, clip_norm: wide}\n"
        "schedule: {warmup_steps: -1}\n"
        "logging: true\n"
    )
    with pytest.raises(ValueError, match="does not fit Config") as raised:
        load_config(path, Config)
    head, *lines = str(raised.value).splitlines()
    assert str(path) in head
    expected = [
        "  epoch: there is no such setting. Did you mean 'epochs'? (there is: run, ",
        "  learning_rate: there is no such setting. Did you mean 'optimizer.learning_rate'?",
        "  seed: wanted a whole number; got '1'",
        "  network: wanted 'cnn' or 'mlp'; got 'rnn'",
        "  optimizer.learning_rte: there is no such setting. Did you mean 'learning_rate'? ",
        "  optimizer.clip_norm: wanted a number or null; got 'wide'",
        "  schedule: warmup_steps must not be negative; got -1",
        "  logging: wanted settings by name; got True",
    ]
    assert len(lines) == len(expected)
    for line, start in zip(lines, expected, strict=True):
        assert line.startswith(start)


@pytest.mark.parametrize(
    ("text", "said"),
    [("- a", "it: wanted settings by name"), ("a: 1\na: 2", "given.yaml: .*'a' is here twice")],
)
def test_a_file_without_settings_is_refused(write, text, said):
    with pytest.raises(ValueError, match=said):
        load_config(write(text), Config)


def test_a_saved_configuration_is_loaded_and_replaced_as_a_whole(tmp_path):
    path = tmp_path / "run" / "config.yaml"
    config = Config(
        optimizer=Optimizer("sgd", 1e-5, momentum=0.9),
        hooks=({"every": {"n": 2, "hook": "stop_on_nan"}}, "stop_on_nan"),
    )
    for saved in (config, replace(config, epochs=7)):
        save_config(saved, path)
        assert load_config(path, Config) == saved
    assert list(path.parent.iterdir()) == [path]


def test_flags_override_a_file_which_overrides_defaults(write):
    hook = {"stop_early": {"metric": "val/loss", "patience": 2}}
    path = write("epochs: 3\nseed: 4\nhooks: [{stop_early: {metric: val/loss, patience: 2}}]")
    flags = ["--config", str(path), "--seed", "5", "--optimizer.learning-rate", "3e-4"]
    config = parse_config(Config, flags)
    assert config == Config(
        epochs=3, seed=5, optimizer=Optimizer(learning_rate=3e-4), hooks=(hook,)
    )


def test_flags_alone_are_enough(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script.py", "--widths", "1", "2", "--network", "mlp"])
    assert parse_config(Config) == Config(widths=(1, 2), network="mlp")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--config", "missing.yaml"], "missing.yaml"),
        (["--config"], "--config"),
        (["--epoch", "3"], "--epochs"),
        (["--optimizer.learning-rate", "-1"], "must be above 0"),
    ],
)
def test_a_mistake_on_the_command_line_ends_the_program(flags, said, capsys):
    with pytest.raises(SystemExit) as raised:
        parse_config(Config, flags)
    told = capsys.readouterr()
    assert raised.value.code not in (0, None)
    assert said in f"{raised.value}{told.out}{told.err}"


def test_a_mistake_in_the_file_ends_the_program(write):
    with pytest.raises(SystemExit, match="epochs: wanted a whole number; got 'many'"):
        parse_config(Config, ["--config", str(write("epochs: many"))])


def test_help_shows_how_to_give_a_file(capsys):
    with pytest.raises(SystemExit, match="0"):
        parse_config(Config, ["--help"], description="Trains.")
    told = capsys.readouterr().out
    assert "Trains." in told
    assert "--config FILE" in told
    assert "--optimizer.learning-rate" in told
    assert "--hooks" not in told


def test_a_fresh_run_needs_an_empty_directory(tmp_path):
    flags = ["--fresh", "--run", str(tmp_path)]
    assert parse_config(Config, flags).fresh
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "begun").touch()
    assert parse_config(Config, flags).fresh  # a run was refused before it began
    (tmp_path / "config.yaml").write_text("epochs: 2")
    with pytest.raises(SystemExit, match="holds a run"):
        parse_config(Config, flags)


def test_without_tyro_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tyro", None)
    with pytest.raises(ImportError) as raised:
        parse_config(Config, [])
    assert 'pip install "entracte[config]"' in raised.value.__notes__[0]


def test_a_configuration_converts_to_plain_data():
    data = to_dict(Config(hooks=({"chain": ("a", "b")},)))
    assert data["run"] == "runs/mine"
    assert data["widths"] == [8, 8]
    assert data["hooks"] == [{"chain": ["a", "b"]}]


def test_a_run_resumes_with_other_epochs_logs_hooks_and_checkpoints():
    config = Config()
    other = replace(
        config,
        run=Path("elsewhere"),
        epochs=40,
        fresh=True,
        logging=Logging(console=False),
        checkpointing=Checkpointing(keep=1),
        hooks=("stop_on_nan",),
    )
    assert config_differences(to_comparable(config), to_comparable(other)) == []


@pytest.mark.parametrize(
    ("before", "changes", "said"),
    [
        ({}, {"seed": 1}, "seed: saved 0, now 1"),
        ({}, {"network": "mlp"}, "network: "),
        ({}, {"optimizer": Optimizer(learning_rate=0.1)}, "optimizer/learning_rate: "),
        ({"schedule": Schedule("cosine")}, {"epochs": 40}, "schedule/epochs: saved 20, now 40"),
        ({"schedule": Schedule(warmup_share=0.1)}, {"epochs": 40}, "schedule/epochs: "),
        ({"schedule": Schedule("cosine", steps=9)}, {"epochs": 40}, None),
        ({"schedule": Schedule(warmup_steps=5)}, {"epochs": 40}, None),
    ],
)
def test_settings_that_change_training_are_compared(before, changes, said):
    config = Config(**before)
    found = config_differences(to_comparable(config), to_comparable(replace(config, **changes)))
    assert len(found) == (said is not None)
    assert all(line.startswith(said) for line in found)
