"""An agent killed with SIGKILL again and again: all of reinforcement learning in one run.

Lessons that open as they are learned, a recurrent policy, statistics of observations and
rewards, a teacher whose say fades, evaluations, a decision to stop that several of them make.
"""

from __future__ import annotations

import importlib
import logging
import time
from collections import Counter
from pathlib import Path

import _crashing as crashing
import forking
import jax
import numpy as np
import optax
import pytest

import hooks
import models
import trainer
from trainer import losses, rl
from trainer.rl import distillation, environments
from trainer.rl.policies import init_weights

LIMIT = 120
"""Seconds after which a process counts as hanging."""

KILLS = 20
"""Of a soak."""

EPOCHS = 40
"""Epochs of the run; it stops at half of them."""
EVERY, WINDOW = 4, 5
"""Epochs between evaluations, and the number of them until it stops: no return is below 0."""
FADED = 60
"""Optimizer steps, of the 80 until the run stops, until the teacher's weight is 0."""
LESSONS = ("empty", "two_rooms", "key")

TAUGHT = models.actor_critic(actions=5, hidden=(4,), recurrent_size=4)
"""The teacher's network, another one than the student's."""


def _env() -> environments.Environment:
    levels = environments.gridworld_levels()
    params = {name: levels[name] for name in LESSONS}
    return rl.lessons(environments.gridworld(), params, weights={LESSONS[0]: 1.0})


def run(directory: Path, teacher: Path) -> None:
    """Train or resume until the run stops; write what `crashing.left` reads."""
    logging.getLogger("entracte").setLevel(logging.ERROR)
    network = models.actor_critic(actions=5, hidden=(8,), recurrent_size=8)
    fading = optax.linear_schedule(1.0, 0.0, FADED)
    agent = rl.ppo(
        network,
        _env(),
        optax.adam(1e-2),
        rl.PPOConfig(
            envs=4,
            steps=16,
            epochs=2,
            minibatches=2,
            normalize_observations=True,
            normalize_rewards=True,
        ),
        loss=losses.total(rl.ppo_loss(), (distillation.kickstart(), fading)),
        teacher=distillation.restore_teacher(TAUGHT, teacher, _env()),
    )
    exam = rl.evaluation_of(network, _env(), episodes=4, greedy=False)
    opening = hooks.thresholds(dict.fromkeys(LESSONS[:-1], 0.0), window=4)
    state, _ = trainer.fit(
        agent.init(jax.random.key(0)),
        agent.program,
        epochs=EPOCHS,
        hooks=hooks.chain(
            hooks.adapt_curriculum(LESSONS, opening),
            hooks.every(EVERY, hooks.evaluate(exam)),
            hooks.stop_at_return(0.0, metric="val/return", window=WINDOW),
            hooks.log_metrics(
                hooks.JsonLines(directory / "metrics.jsonl"), hooks.TensorBoard(directory / "board")
            ),
            hooks.save_checkpoints(directory, keep=2, max_cost=None),
        ),
    )
    partial = directory / f"{crashing.FINAL}.tmp"
    partial.write_text(trainer.fingerprint(state))
    partial.replace(directory / crashing.FINAL)


@pytest.fixture(scope="module")
def agents(tmp_path_factory):
    """Return a function that starts a run, and the results of an uninterrupted one."""
    teacher = tmp_path_factory.mktemp("teacher")
    key, env = jax.random.key(1), _env()
    weights = jax.jit(lambda key: init_weights(TAUGHT, env, key))(key)
    with trainer.Checkpoints(teacher) as checkpoints:
        checkpoints.save(trainer.TrainState.create(params=weights.params, rng=key))
    target = importlib.import_module("test_agents").run  # by a name that a process can import
    begin = forking.starter(target, tmp_path_factory.mktemp("cache"))

    def start(directory):
        directory.mkdir(exist_ok=True)
        return begin(directory, teacher)

    whole = tmp_path_factory.mktemp("whole")
    assert crashing.completed(start(whole), LIMIT)
    left = crashing.left(whole)
    _check_worth_killing(left.lines)
    return start, left


def _check_worth_killing(lines):
    """Everything that a run could forget changes during training."""
    assert [epoch for epoch, _ in lines] == list(range(1, EVERY * WINDOW + 1))
    values = [line for _, line in lines]
    assert sum("val/return" in line for line in values) == WINDOW
    weights = [line[f"curriculum/weight/{LESSONS[1]}"] for line in values]
    assert weights[2] == 0 < weights[-1]
    coefficients = [line["update/kickstart_coefficient"] for line in values]
    assert coefficients[0] > 0.9
    assert abs(coefficients[-1]) < 1e-6
    assert len(set(coefficients)) > FADED / 4


@pytest.mark.soak  # smaller tests hold the same law: in this process, and kills of a task's run
def test_law_5_an_agent_killed_twice_resumes_bit_for_bit(agents, tmp_path):
    start, wanted = agents
    random = np.random.default_rng(seed := int(time.time()))
    for first in (1, 11):  # each kill is at most 20 ms late, and so before the next
        next_one = max(first, crashing.newest(tmp_path) + 1)  # in case the last kill came too late
        epoch, late = int(random.integers(next_one, next_one + 4)), random.uniform(0, 0.02)
        print(f"seed {seed}: killed {late:.4f} s after the save of epoch {epoch} began")
        assert crashing.kill_in_save(start(tmp_path), tmp_path, epoch, late)
    assert crashing.completed(start(tmp_path), LIMIT)
    assert crashing.left(tmp_path) == wanted


@pytest.mark.soak
def test_an_agent_killed_twenty_times_at_random(agents, tmp_path):
    """Half at any instant of a process's life, half within 20 ms of a save; prints its seed."""
    start, wanted = agents
    random = np.random.default_rng(seed := int(time.time()))
    began = time.perf_counter()
    assert crashing.completed(start(tmp_path / "0"), LIMIT)
    seconds = time.perf_counter() - began
    kills, runs = Counter(), 0
    while kills.total() < KILLS:
        runs += 1
        directory = tmp_path / str(runs)
        while kills.total() < KILLS:
            process, where = start(directory), str(random.choice(["anywhere", "at a save"]))
            if where == "anywhere":
                killed = crashing.kill_after(process, directory, random.uniform(0, seconds))
            else:
                epoch = crashing.newest(directory) + int(random.integers(1, EVERY + 1))
                killed = crashing.kill_in_save(process, directory, epoch, random.uniform(0, 0.02))
            if not killed:
                assert process.exitcode == 0  # the run had ended before
                break
            kills[where] += 1
        assert crashing.completed(start(directory), LIMIT)
        assert crashing.left(directory) == wanted
    print(f"seed {seed}: {kills.total()} kills in {runs} runs, {dict(kills)}")
