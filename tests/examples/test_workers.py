"""Trainer, rollout worker and evaluator as three processes, as a user starts them."""

import json
import re
import time

import numpy as np
import pytest
from running import EXAMPLES, Script

LIMIT = 120
"""Time limit of a process, in seconds."""

TRAINER = """
import sys, time
from pathlib import Path

import jax, optax
import hooks, models, trainer
from trainer import rl
from trainer.rl import environments

run, *others = map(Path, sys.argv[1:])
env = environments.cartpole()
network = models.actor_critic(actions=2)
config = rl.PPOConfig(envs=2, steps=8, epochs=2, minibatches=2)
agent = rl.ppo(network, env, optax.adam(1e-3), config)

def pace(state, metrics):
    time.sleep(0.2)
    met = all(file.exists() and file.read_text().count("\\n") >= 2 for file in others)
    return state.replace(stop=met)

state, _ = trainer.fit(
    agent.init(jax.random.key(0)),
    agent.program,
    epochs=400,
    hooks=hooks.chain(pace, hooks.save_checkpoints(run, keep=2, max_cost=None)),
)
print("fingerprint", trainer.fingerprint(state))
"""
"""Trains slowly until each follower has evaluated two checkpoints."""


@pytest.fixture
def start():
    """Return a function that starts a script; processes that still run in the end are killed."""
    started = []

    def start(*arguments):
        process = Script(*arguments)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=LIMIT)


def finished(process):
    printed, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, printed
    assert re.fullmatch(r"fingerprint [0-9a-f]{64}", printed.rstrip().splitlines()[-1])
    return printed


def records(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_three_processes_and_the_records_of_each(tmp_path, start):
    run, worker, evaluator = (tmp_path / name for name in ("run", "worker", "evaluator"))
    follow = ("--follow", run, "--timeout", "5", "--logging.no-report", "--checkpointing.max-cost")
    script = tmp_path / "training.py"
    script.write_text(TRAINER)
    training = start(script, run, *(r / "metrics.jsonl" for r in (worker, evaluator)))
    while training.poll() is None and not list((run / "checkpoints").glob("?")):
        time.sleep(0.05)
    playing = start(
        *(EXAMPLES / "rollout_worker.py", "--run", worker, *follow, "None", "--wait"),
        *("--envs", "3", "--steps", "16"),
    )
    measuring = start(
        *(EXAMPLES / "evaluator.py", "--run", evaluator, *follow, "None", "--episodes", "2")
    )
    finished(training)
    *_, last = kept = sorted(int(path.name) for path in (run / "checkpoints").iterdir())
    assert kept == [last - 1, last]
    assert last < 400

    said = finished(measuring).replace("\n", " ")
    measured = records(evaluator)
    epochs = [record["follow/epoch"] for record in measured]
    assert len(epochs) >= 2
    assert epochs == sorted(set(epochs))
    assert epochs[-1] == last
    for record in measured:
        assert record["step"] == 4 * record["follow/epoch"]
        assert 1 <= record["val/return"] <= 500
    assert f"the last one epoch {last} of" in said

    finished(playing)
    played = records(worker)
    assert played[-1]["follow/epoch"] == last
    files = sorted((worker / "experience").iterdir())
    assert [file.name for file in files] == [f"{n:06}.npz" for n in range(1, len(played) + 1)]
    for file, record in zip(files, played, strict=True):
        with np.load(file) as experience:
            assert experience["observation"].shape == (16, 3, 4)
            assert experience["action"].shape == experience["log_prob"].shape == (16, 3)
            assert int(experience["followed"]) == record["follow/epoch"]
        assert record["step"] == 4 * record["follow/epoch"]
        assert record["rollout/steps"] == 48


def test_a_follower_without_a_run_to_follow_times_out(tmp_path, start):
    process = start(
        *(EXAMPLES / "evaluator.py", "--run", tmp_path / "own", "--follow", tmp_path / "nowhere"),
        *("--timeout", "0.5"),
    )
    printed, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 1
    said = re.sub(r"\s+", " ", printed)
    assert "follow_checkpoints: waiting for first checkpoint in" in said
    assert "TimeoutError: follow_checkpoints waited 0.5 s for first checkpoint in" in said
    assert "nowhere" in said
