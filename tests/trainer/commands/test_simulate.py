"""The command `simulate`: a custom function restores and plays a checkpoint."""

from __future__ import annotations

import importlib.util
import shutil

import jax.numpy as jnp
import pytest

import hooks
import trainer
from trainer.__main__ import main
from trainer.evaluators.suite_loading import load_named
from trainer.runs import Run, Store
from trainer.runs.requests import claim_request, create_request, finish_request
from trainer.runs.run_directory import describe_checkpoint

SIMULATION = '''
import jax, jax.numpy as jnp, optax
import trainer

def start():
    params = {"w": jnp.zeros(2), "b": jnp.zeros(())}
    opt_state = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1).init(params)
    return trainer.TrainState.create(params=params, opt_state=opt_state, rng=jax.random.key(0))

def simulation(checkpoint, *, times: int = 1, loud: bool = False):
    """Print the parameters.

    Args:
        times: how often.
        loud: with an exclamation mark.
    """
    state = checkpoint.restore(start())
    for _ in range(times):
        print(int(state.epoch), state.params["w"].tolist(), "!" * loud)

def ends_badly(checkpoint):
    return 3

def other(checkpoint):
    checkpoint.restore(start().replace(params={"w": jnp.zeros(3)}))

def clashing(checkpoint, *, epoch: int = 3):
    pass

def without():
    return 0


def positional(checkpoint, episodes=3):
    pass

number = 3
'''


def halve(state, data):
    size = abs(state.params["w"]).sum()
    params = {"w": state.params["w"] / 2, "b": state.params["b"]}
    return state.replace(params=params, step=state.step + 1), None, {"loss": size}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a run of three epochs, and a file of simulations beside it."""
    folder = tmp_path_factory.mktemp("simulating")
    (folder / "mine.py").write_text(SIMULATION)
    start = load_named(f"{folder}/mine.py:start")()
    saving = hooks.save_checkpoints(folder / "runs" / "halving", keep=3, max_cost=None)
    logging = hooks.log_metrics(hooks.Database(Run(folder / "runs" / "halving")))
    params = {"w": jnp.array([1.0, -2.0]), "b": jnp.zeros(())}
    program = trainer.Phase("train", halve)
    trainer.fit(start.replace(params=params), program, epochs=3, hooks=[logging, saving])
    return folder


@pytest.fixture
def run(trained, monkeypatch):
    """That run, in the default store."""
    monkeypatch.chdir(trained)
    monkeypatch.delenv("ENTRACTE_STORE", raising=False)


WITH = ("--with", "mine.py:simulation")


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        ([], "3 [0.125, -0.25] \n"),
        (["--epoch", "2", "--times", "2"], "2 [0.25, -0.5] \n" * 2),
        (["--best", "train/loss", "--loud"], "3 [0.125, -0.25] !\n"),
        (["--best", "train/loss", "--mode", "max"], "1 [0.5, -1.0] \n"),
    ],
)
@pytest.mark.parametrize("recorded", [True, False])
def test_it_restores_the_named_checkpoint_and_passes_options(
    run, tmp_path, words, printed, recorded, capsys
):
    name = "halving"
    if not recorded:  # its directory alone is enough
        name = str(shutil.copytree("runs/halving", tmp_path / "halving"))
    assert main(["simulate", name, *WITH, *words]) == 0
    assert capsys.readouterr().out == printed


def test_the_best_may_be_by_a_score_of_an_evaluator(run, capsys):
    with Store("runs") as store:
        for epoch, score in ((1, 0.5), (2, 0.75), (3, 0.25)):
            checksum = describe_checkpoint("runs/halving", epoch).checksum
            create_request(store, "halving", epoch, "exam", checksum=checksum, time=float(epoch))
            finish_request(
                store, claim_request(store, "worker", ["exam"], lease=60), {"exam/return": score}
            )
    assert main(["simulate", "halving", *WITH, "--best", "exam/return"]) == 0
    assert capsys.readouterr().out.startswith("2 ")


def test_help_lists_the_options_of_the_function(run, capsys):
    assert main(["simulate", "halving", *WITH, "--help"]) == 0
    printed = capsys.readouterr().out
    assert "Print the parameters." in printed
    for told in ("--times INT", "how often.", "--loud", "--epoch", "of the checkpoint"):
        assert told in printed
    assert main(["simulate", "--help"]) == 0
    assert "NAME(checkpoint, *, ...)" in capsys.readouterr().out


def test_it_returns_the_exit_status_of_the_function(run):
    assert main(["simulate", "halving", "--with=mine.py:ends_badly"]) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["halving", *WITH, "--epoch", "9"], "no checkpoint of epoch 9"),
        (["halving", *WITH, "--epoch", "1", "--best", "train/loss"], "not both"),
        (["halving", *WITH, "--best", "time/epoch_seconds"], "--mode min or"),
        (
            ["halving", *WITH, "--best", "val/loss"],
            "no metric 'val/loss' was recorded (there is: train/loss",
        ),
        (["halvin", *WITH], "halving"),
        (["halving", "--with", "mine.py:number"], "must be a function"),
        (["halving", "--with", "mine.py:nothing"], "defines no 'nothing'"),
        (["halving", "--with", "mine.py:clashing"], "got 'epoch'"),
        (["halving", "--with", "mine.py:without"], "must take the checkpoint"),
        (["halving", "--with", "mine.py:positional"], "got 'episodes'"),
        (["halving", "--with", "mine.py:other"], "params/w"),
    ],
)
def test_errors_name_the_problem(run, words, said, capsys):
    assert main(["simulate", *words]) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert "Traceback" not in printed


def test_a_missing_function_is_named(run, capsys):
    assert main(["simulate", "halving"]) == 2
    assert "--with" in capsys.readouterr().err


def test_the_example_has_a_simulation(capsys):
    """The tests of examples play it; this one checks its options in the help."""
    place = importlib.util.find_spec("trainer").submodule_search_locations[0]
    file = f"{place}/../examples/cartpole.py"
    assert main(["simulate", "x", "--with", f"{file}:simulation", "--help"]) == 0
    assert "--episodes INT" in capsys.readouterr().out
