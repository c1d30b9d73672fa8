"""The race of trainers: who takes part, their processes, rounds, and the table."""

import ast
import importlib.util
import os
from pathlib import Path

import _peer_table
import _starting
import jax
import numpy as np
import peers
import pytest
from _ppo_settings import Settings
from contestants import flax_loops, library_runs, pure_ppo, workloads
from contestants.entrants import ENTRANTS, Entrant

pytestmark = pytest.mark.usefixtures("compiled_quickly")

BENCHMARKS = Path(peers.__file__).parent
FAKE = """
import json, sys
print("a warning", file=sys.stderr)
print(json.dumps({"seconds": 1.0, "started": sys.argv[1:]}), flush=True)
for line in sys.stdin:
    if line == "13\\n":
        sys.exit("it had enough")
    print(json.dumps({"seconds": int(line) / 10}), flush=True)
"""
LIBRARY, REPEATED, FLAX, CACHED = (one.name for one in ENTRANTS[:4])


def read_code(module):
    return ast.parse((BENCHMARKS / f"{module}.py").read_text())


@pytest.mark.parametrize("entrant", ENTRANTS, ids=lambda one: one.name)
def test_an_entrant_names_a_function_and_races(entrant):
    module, function = entrant.place.split(":")
    code = read_code(f"contestants/{module}")
    assert function in {node.name for node in code.body if isinstance(node, ast.FunctionDef)}
    assert set(entrant.races) <= {*workloads.UNITS, workloads.TWO_THOUSAND}


def test_names_of_entrants_are_unique_and_bars_are_of_entrants():
    names = [one.name for one in ENTRANTS]
    assert len({*names}) == len(names)
    races = {one.name: one.races for one in ENTRANTS}
    assert all(race in races[name] for race, name in peers.BARS)


def test_packages_that_are_not_installed_are_named():
    entrant = Entrant("Any", "defaults", "any:usual", (), ("numpy", "not_installed_at_all"))
    assert entrant.missing == ["not_installed_at_all"]


@pytest.mark.parametrize("module", ["_contestant", "contestants/workloads", "_ppo_settings"])
def test_a_start_imports_no_other_trainer(module):
    names = {
        name.split(".")[0]
        for node in ast.walk(read_code(module))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [node.names[0].name])
    }
    assert not names & {"jax", "flax", "optax", "torch", "keras", "trainer", "models", "hooks"}


def test_windows_of_text_are_labelled_with_the_next_character():
    text = workloads.load("transformer", quick=True)
    inputs, labels = text.arrays["inputs"], text.arrays["labels"]
    np.testing.assert_array_equal(inputs[:, 1:], labels[:, :-1])
    assert inputs.shape == (10 * 12, 8)
    assert workloads.count("transformer", text) == 10 * 12 * 8
    assert labels.max() < text.size.vocabulary


def test_two_thousand_steps_warm_up_and_fall_to_a_tenth():
    text = workloads.load(workloads.TWO_THOUSAND, quick=False)
    rates = text.optimizer.rate
    assert rates.shape == (2000,)
    np.testing.assert_allclose(rates[[0, 50, 100]], [1e-3 / 101, 51e-3 / 101, 1e-3], rtol=1e-6)
    np.testing.assert_allclose(rates[[1050, 1999]], [0.55e-3, 1e-4], rtol=1e-4)
    seen = set(map(bytes, text.arrays["inputs"]))
    words = [row for row in text.held_out["inputs"] if len(set(row.tolist())) > 3]  # no table rules
    assert len(words) > 500
    assert not any(bytes(row) in seen for row in words)


@pytest.mark.parametrize("make", [library_runs.usual, library_runs.repeated, flax_loops.cached])
def test_a_contestant_trains(make):
    run = make(workloads.load("MLP", quick=True))
    assert run(1) is None
    assert run(5) is None


def test_the_library_reports_the_loss_on_held_out_text():
    text = workloads.load("transformer", quick=True)
    settings = text.optimizer._replace(rate=np.full(10, 1e-2, np.float32), clip_norm=1.0)
    run = library_runs.usual(text._replace(optimizer=settings, held_out=text.arrays))
    (untrained,) = library_runs.usual(
        text._replace(
            optimizer=settings._replace(rate=np.zeros(10, np.float32), decay=0.0),
            held_out=text.arrays,
        )
    )(1).values()
    (loss,) = run(3).values()
    assert loss < 0.9 * untrained


def test_one_function_for_a_whole_training_learns_cartpole():
    train = pure_ppo.make_train(Settings(minibatches=2), iterations=40)
    state, told = train(jax.random.key(0))
    assert int(state.step) == 40 * 4 * 2
    returns = np.asarray(told["return"])
    np.testing.assert_array_equal(returns, told["length"])
    done = np.asarray(told["done"])
    assert done.shape == (40, 128, 8)
    assert returns[-5:][done[-5:]].mean() > 2 * returns[:5][done[:5]].mean()


@pytest.fixture
def fake(tmp_path, monkeypatch):
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    monkeypatch.setattr(_starting, "SCRIPT", script)
    made = []

    def start(*arguments):
        made.append(_starting.Contestant(arguments, tmp_path / "cache", {}))
        return made[-1]

    yield start
    for contestant in made:
        contestant.close()


def test_a_contestant_answers_how_long_it_trained(fake):
    contestant = fake("MLP", "fake:usual")
    assert contestant.first_answer["started"] == ["MLP", "fake:usual"]
    assert 0 < contestant.start < 60
    assert contestant.train(20) == {"seconds": 2.0}
    contestant.close()
    assert not contestant.folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(contestant.process.pid, 0)


def test_a_contestant_that_ends_says_why(fake):
    contestant = fake("MLP", "fake:usual")
    with pytest.raises(_starting.ContestantError, match="it had enough"):
        contestant.train(13)


def test_a_contestant_that_does_not_answer_has_failed(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(_starting, "LIMIT", 0.1)
    (tmp_path / "fake.py").write_text("import time; time.sleep(60)")
    with pytest.raises(_starting.ContestantError, match=r"no answer within 0\.1 s"):
        fake("MLP", "fake:usual")


def test_rates_are_taken_in_rounds_and_who_fails_is_left_out(fake):
    race = peers.Race("MLP", quick=True, left_out={"absent": "torch is not installed"})
    good, bad = race.entrants[0], race.entrants[2]
    running = [(good, fake("MLP", "fake:usual")), (bad, fake("MLP", "fake:usual"))]
    running[1][1].train = lambda epochs: _starting.Contestant.train(running[1][1], 13)
    race.take_turns(running, rounds=3, seconds=2.0)
    assert race.samples == {good.name: pytest.approx([2 * 10] * 3)}  # two steps an epoch of 0.1 s
    assert race.left_out == {
        "absent": "torch is not installed",
        bad.name: "MLP: it had enough",
    }


def test_ratios_are_of_the_fastest_of_the_library():
    race = peers.Race("MLP", quick=True, left_out={})
    keras = "Keras on JAX, defaults"
    race.samples = {LIBRARY: [8.0, 8.0, 8.0], REPEATED: [9.0, 12.0, 9.0], keras: [3.0, 3.0, 3.0]}
    race.entrants = [one for one in ENTRANTS if one.name in race.samples]
    ratios, bars = peers.compare(race)
    assert ratios[keras]["quartiles"] == [3.0, 3.5]
    assert [(bar["what"], bar["at least"], bar["holds"]) for bar in bars] == [
        (f"MLP: {REPEATED} / {keras}", 3, True)
    ]


def make_record():
    def spread(figure):
        return {"median": figure, "quartiles": [figure, figure]}

    return {
        "measured": {
            "MLP": {LIBRARY: spread(12345.0), FLAX: spread(1234.5)},
            workloads.TWO_THOUSAND: {LIBRARY: {"seconds": 61.2, "held-out loss": 1.5}},
        },
        "ratios": {"MLP": {LIBRARY: spread(1.0), FLAX: spread(10.04)}},
        "starts": {LIBRARY: {"first start": spread(4.04), "later start": spread(2.5)}},
        "left_out": {"Keras on JAX, defaults": "keras is not installed"},
        "date": "2026-01-02T03:04:05",
        "processor": "a CPU",
        "cores": 2,
        "versions": {"jax": "0.10.2"},
    }


def test_the_table_has_rates_ratios_starts_and_who_is_left_out():
    lines = _peer_table.render(make_record()).splitlines()
    assert lines[2] == "| Entracte | `fit` | 12,300 |  |  |  |  |  | 4.0 s | 2.5 s |"
    assert lines[3] == "| Flax NNX | `nnx.jit`, batch by batch | 1,230 (10) |  |  |  |  |  |  |  |"
    assert lines[4] == ""
    assert "Entracte, `fit`: 61 s with start and compilation, loss 1.50 on held-out" in lines[7]
    assert lines[9:] == [
        "Left out: Keras on JAX, defaults: keras is not installed.",
        "",
        "2026-01-02, a CPU, 2 cores; jax 0.10.2.",
    ]


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="PyTorch is not installed")
def test_the_transformer_of_pytorch_has_as_many_parameters():
    from contestants import torch_networks

    text = workloads.load("transformer", quick=True)
    network = library_runs.build_network(text)
    params, _ = jax.eval_shape(network.init, jax.random.key(0), text.arrays["inputs"][:1])
    theirs = torch_networks.build(text).parameters()
    assert sum(p.numel() for p in theirs) == sum(p.size for p in jax.tree.leaves(params))
