"""The command `backtest`: its output and its errors."""

from __future__ import annotations

import json

import pytest

from trainer.__main__ import main

HOOKS = """
import jax, jax.numpy as jnp, optax
import hooks
import trainer

params = {"w": jnp.ones(2)}
optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.5)

def start():
    return trainer.TrainState.create(
        params=params, opt_state=optimizer.init(params), rng=jax.random.key(0)
    )

def patience():
    return hooks.stop_early("val/loss", patience=2)

plateau = hooks.reduce_on_plateau("val/loss", factor=0.5, patience=1)
schedule = hooks.set_hyperparams(learning_rate=lambda epoch: 0.5**epoch)
averaged = hooks.average_params()

def stop(state, metrics):
    return state.replace(stop=True)

@hooks.writes("val/half")
def half(state, metrics):
    return state.replace(scores={**state.scores, "val/half": metrics["val/loss"] / 2})

def give_up(state, metrics):
    raise trainer.Interrupt("\\x1b[2J[bold]enough")

def fail(state, metrics):
    raise ValueError("of its own")

board = hooks.log_metrics(hooks.JsonLines("lines.jsonl"))
both = hooks.chain(board, patience())
number = 3
"""


@pytest.fixture(autouse=True)
def _file(digits_store, tmp_path):
    (tmp_path / "mine.py").write_text(HOOKS)


def test_it_shows_when_a_run_would_have_stopped_and_its_metrics_then(capsys):
    assert main(["backtest", "digits", "--hooks", "mine.py:patience"]) == 0
    printed = capsys.readouterr().out
    assert "4 of 6 recorded epochs, backtested in" in printed
    assert "stopped at epoch 4 by stop_early/val/loss" in printed
    rows = [line.split() for line in printed.splitlines()]
    assert ["val/loss", "0.4100", "0.3000", "at", "5", "0.3500"] in rows
    assert "best 0.4000, since 2" in printed


def test_changes_of_numbers_are_listed(capsys):
    command = ["backtest", "digits", "--hooks", "mine.py:plateau", "--state", "mine.py:start"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "these hooks would have let it continue" in printed
    told = "set: 0.5000, 0.2500 after epoch 3, 0.1250 after epoch 4, 0.06250 after epoch 6"
    assert f"learning_rate {told}" in " ".join(printed.split())


def test_many_changes_are_drawn(digits_store, capsys):
    for epoch in range(7, 30):
        digits_store.write_records("digits", epoch, 28 * epoch, {"val/loss": 0.1})
    command = ["backtest", "digits", "--hooks", "mine.py:schedule", "--state", "mine.py:start"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "learning_rate\n" in printed
    assert "┤" in printed


def test_scripts_get_json(capsys):
    assert main(["backtest", "digits", "--hooks", "mine.py:half", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["stop_epoch"] is None
    assert [epoch["scores"]["val/half"] for epoch in found["epochs"]][:2] == [0.25, 0.2]
    main(["backtest", "runs/digits", "--hooks", "mine.py:patience", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["stop_epoch"], found["stopped_by"], found["stop_reason"]) == (
        4,
        "stop_early/val/loss",
        "stop",
    )
    assert found["epochs"][-1]["hook_state"] == {"stop_early/val/loss": {"best": 0.4, "since": 2}}


def test_a_plain_function_is_a_hook(capsys):
    assert main(["backtest", "digits", "--hooks", "mine.py:stop"]) == 0
    assert "stopped at epoch 1 by stop" in capsys.readouterr().out


def test_observers_are_left_out_unless_asked_for(tmp_path, capsys):
    assert main(["backtest", "digits", "--hooks", "mine.py:both"]) == 0
    assert "2 observing parts were left out" in capsys.readouterr().out
    assert not (tmp_path / "lines.jsonl").read_text()
    assert main(["backtest", "digits", "--hooks", "mine.py:both", "--observers"]) == 0
    lines = (tmp_path / "lines.jsonl").read_text().splitlines()
    assert [json.loads(line)["val/loss"] for line in lines] == [0.5, 0.4, 0.45, 0.41]
    assert main(["backtest", "digits", "--hooks", "mine.py:board"]) == 2
    assert "--observers runs" in capsys.readouterr().err


def test_names_cannot_control_the_terminal(hostile, capsys):
    assert main(["backtest", hostile, "--hooks", "mine.py:give_up"]) == 0
    printed = capsys.readouterr().out
    assert hostile in printed
    assert "\\x1b[2J[bold]enough" in printed
    assert "\x1b" not in printed
    assert main(["backtest", hostile, "--hooks", "mine.py:patience"]) == 2
    said = capsys.readouterr().err
    assert "there is: \\x1b[2J[red]val/loss" in said
    assert "\x1b" not in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--hooks", "mine.py:number"], "mine.py:number must be a hook or a chain"),
        (["--hooks", "mine.py:nothing"], "defines no 'nothing'"),
        (["--hooks", "mine.py"], "give FILE:NAME"),
        (["--hooks", "other.py:x"], "there is no file"),
        (["--hooks", "mine.py:stop", "--state", "mine.py:number"], "must be a TrainState"),
        (["--hooks", "mine.py:plateau"], "the run began with, --state FILE:NAME"),
        (["--hooks", "mine.py:averaged"], "at epoch 1, but only metrics are recorded"),
    ],
)
def test_errors_name_the_problem(words, said, capsys):
    assert main(["backtest", "digits", *words]) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert "Traceback" not in printed


def test_an_unknown_run_is_an_error(capsys):
    assert main(["backtest", "digit", "--hooks", "mine.py:stop"]) == 2
    assert "digits" in capsys.readouterr().err


def test_an_exception_of_a_hook_keeps_its_notes():
    with pytest.raises(ValueError, match="of its own") as caught:
        main(["backtest", "digits", "--hooks", "mine.py:fail"])
    assert "in hook 'fail' at 'epoch' of epoch 1" in caught.value.__notes__
