"""Signals end a real process in the usual way, after a commit."""

import os
import signal
import subprocess
import sys

import pytest

CHILD = """
import sys, time
import jax, jax.numpy as jnp
import hooks, trainer

def step(state, data):
    return state.replace(step=state.step + 1, params=state.params + 1), None, {"w": state.params}

def linger(state, metrics):
    print(int(state.epoch), flush=True)
    time.sleep(0.2)
    return state

state = trainer.TrainState.create(params=jnp.zeros(()), rng=jax.random.key(0))
chain = [linger, hooks.save_checkpoints(sys.argv[1], max_cost=None)]
trainer.fit(state, trainer.Phase("train", step), epochs=1000, hooks=chain)
"""


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)]
)
def test_a_signal_commits_the_running_epoch(tmp_path, number, status):
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        seen = [int(child.stdout.readline()) for _ in range(2)]
        os.kill(child.pid, number)
        rest, said = child.communicate(timeout=60)
    finally:
        child.kill()
        child.wait(10)
    assert child.returncode == status, said
    last = [*seen, *map(int, rest.split())][-1]
    assert last < 10
    assert str(last) in os.listdir(tmp_path / "checkpoints")
    assert f"{number.name}: ending after this epoch" in said
